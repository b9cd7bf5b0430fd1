"""A look at the data of a run before it starts: what the model sees, what each step of loading costs, what to change."""
