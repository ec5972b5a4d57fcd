"""What both implementations read: specs, shapes, weights, data. Imports neither framework."""

from .spec import Error, load, names, unroll

__all__ = ["Error", "load", "names", "unroll"]
