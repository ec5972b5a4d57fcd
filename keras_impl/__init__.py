"""The networks in Keras, and the engine that runs them."""

from shared import coexist

coexist.isolate_triton("torch")

import keras  # noqa: E402

from . import checkpoints, export, naive, submission  # noqa: E402
from .engines import Engine, trainer  # noqa: E402
from .feature_maps import features  # noqa: E402
from .network import Network, build, folded  # noqa: E402
from .optimizers import SGD, Adam, AdamW  # noqa: E402
from .plain import functional  # noqa: E402
from .weights import load, state  # noqa: E402

keras.saving.register_keras_serializable("resnet_twins")(Network)

__all__ = [
    "SGD",
    "Adam",
    "AdamW",
    "Engine",
    "Network",
    "build",
    "checkpoints",
    "export",
    "features",
    "folded",
    "functional",
    "load",
    "naive",
    "state",
    "submission",
    "trainer",
]
