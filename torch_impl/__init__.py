"""The networks in PyTorch, and the engine that runs them."""

from shared import coexist

coexist.isolate_triton("tensorflow")

from . import checkpoints, datasets, export, naive, submission  # noqa: E402
from .engine import Engine, device, trainer  # noqa: E402
from .feature_maps import features  # noqa: E402
from .network import Network, build, folded  # noqa: E402
from .weights import load, state  # noqa: E402

__all__ = [
    "Engine",
    "Network",
    "build",
    "checkpoints",
    "datasets",
    "device",
    "export",
    "features",
    "folded",
    "load",
    "naive",
    "state",
    "submission",
    "trainer",
]
