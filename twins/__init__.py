"""The application: comparing, training, predicting and exporting networks, in both frameworks."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .differences import Comparison


def diff(a: Any, b: Any, **options: Any) -> "Comparison":
    """Compare two networks, each a PyTorch module or a Keras model, operation by operation: `twins.differences.diff`."""
    from . import differences  # not before it is needed: what looks things up starts without NumPy

    return differences.diff(a, b, **options)
