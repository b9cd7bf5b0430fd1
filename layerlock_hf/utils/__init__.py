"""What every part needs and no part is about. Imports nothing of ours."""
