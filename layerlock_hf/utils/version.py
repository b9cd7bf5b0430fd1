"""The version of the package, where reading it imports nothing else."""

VERSION = "0.1.0.dev0"
