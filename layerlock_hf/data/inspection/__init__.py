"""A look at the data of a run before it starts: what the model sees, what loading costs, and what to change."""
