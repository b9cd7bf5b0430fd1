"""A page on which people drop a video and see what an encoder makes of it. Gradio serves it, an optional extra."""

from .page import build_page, serve
from .space import write_space
from .subject import Subject, find_kept


__all__ = ["Subject", "build_page", "find_kept", "serve", "write_space"]
