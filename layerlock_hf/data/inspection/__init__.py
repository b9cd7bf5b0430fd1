"""Inspecting the data of a run before it starts: what the model sees, what each loading step costs, what to change."""
