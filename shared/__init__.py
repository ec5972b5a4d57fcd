"""The ground that everything else stands on: specs, shapes, weights, images, recipes. Imports no framework."""

from .checks import Error
from .networks import load, names
from .spec import Spec, unroll

__all__ = ["Error", "Spec", "load", "names", "unroll"]
