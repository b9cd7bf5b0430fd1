"""A page about a run of pretraining: what it was, how it went, what it learned. One HTML file, complete in itself."""

from .writing import report


__all__ = ["report"]
