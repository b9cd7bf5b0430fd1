"""What happened, seen afterwards: representations by depth."""
