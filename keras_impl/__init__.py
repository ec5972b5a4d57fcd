"""The networks in Keras."""

from shared import coexist

coexist.prepare("torch")

from .engine import Engine  # noqa: E402
from .network import Network, build  # noqa: E402
from .optimizers import SGD  # noqa: E402
from .weights import load, state  # noqa: E402

__all__ = ["SGD", "Engine", "Network", "build", "load", "state"]
