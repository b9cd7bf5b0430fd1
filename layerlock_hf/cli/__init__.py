"""The command `layerlock`: one module per program, which parses, calls and prints. Nobody imports them."""
