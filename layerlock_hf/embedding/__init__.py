"""Vectors of videos of any length, by a frozen encoder, and the search among them."""

from .arguments import EmbedArguments
from .records import read_shards
from .run import embed
from .search import search


__all__ = ["EmbedArguments", "embed", "read_shards", "search"]
