"""What is measured: a network as it is here and in other projects, in a mode, a framework and a precision.

A case is what `worker.py` needs to know of one measurement, a JSON object.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from shared import networks, shapes
from shared.checks import Error, nearest
from twins.backends import KERAS_BACKENDS, Backend

Case = dict[str, Any]


class Mode(StrEnum):
    """What a step does."""

    INFER = "infer"
    TRAIN = "train"
    BOTH = "both"


class Dtype(StrEnum):
    """The precision of a network; in training, of mixed precision."""

    FLOAT32 = "float32"
    TF32 = "tf32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"


class Format(StrEnum):
    """The order of the axes of maps."""

    NCHW = "nchw"
    NHWC = "nhwc"


class Device(StrEnum):
    """What a network runs on."""

    CPU = "cpu"
    GPU = "gpu"


class Peer(StrEnum):
    """Whose networks ours are compared with."""

    TORCHVISION = "torchvision"
    TIMM = "timm"
    KERAS_APPLICATIONS = "keras.applications"
    KERAS_HUB = "keras_hub"
    TWINS = "twins"


BACKENDS = (Backend.TORCH, *KERAS_BACKENDS)
PEERS: dict[Peer, tuple[Backend, ...]] = {  # the backends that have them
    Peer.TORCHVISION: (Backend.TORCH,),
    Peer.TIMM: (Backend.TORCH,),
    Peer.KERAS_APPLICATIONS: tuple(KERAS_BACKENDS),
    Peer.KERAS_HUB: tuple(KERAS_BACKENDS),
    Peer.TWINS: BACKENDS,
}
AGAIN = "twins again"  # a second process of ours, which shows how far from 1 chance alone takes a ratio
OURS = ("twins", "recommended")  # as asked for, and in the form that is fastest here
CEILING = "ceiling"  # no network: what the machine can do


@dataclass(frozen=True)
class Settings:
    """What all comparisons have in common."""

    backends: Sequence[Backend]
    dtypes: Sequence[Dtype] = (Dtype.FLOAT32,)
    peers: Sequence[Peer] = ()
    recommended: bool = False  # also in the form that is fastest
    batch: int = 16
    size: int | None = None  # pixels on a side; None: the spec's
    layout: Format | None = None  # None: the framework's own
    compiled: bool = False
    cuda_graphs: bool = False
    device: Device = Device.CPU

    def check(self) -> None:
        """Raise `Error` for settings that exclude one another."""
        only_torch = set(self.backends) == {Backend.TORCH}
        if Dtype.TF32 in self.dtypes and self.device == Device.CPU:
            raise Error("--dtype tf32 is for GPUs; expected float32, bfloat16 or float16 on a CPU")
        if self.layout == Format.NCHW and not only_torch:
            raise Error("--format nchw is for --backend torch: Keras's networks here have the channels last")
        if self.cuda_graphs and (self.device == Device.CPU or not only_torch):
            raise Error("--cuda-graphs is for --backend torch on a GPU")
        for peer in self.peers:
            if not set(self.backends) & set(PEERS[peer]):
                raise Error(f"--against {peer} is for --backend {' or '.join(PEERS[peer])}")


def read_peers(values: Sequence[str]) -> list[Peer]:
    """The peers of --against, each once; each value may list several. Raises `Error` for an unknown one."""
    names = list(dict.fromkeys(name for value in values for name in value.split(",") if name))
    known = [peer.value for peer in Peer]
    for name in names:
        if name not in known:
            raise Error(f"--against is {name!r}{nearest(name, known)}; expected {', '.join(known)}")
    return [Peer(name) for name in names]


def cases(network: str, mode: Mode, settings: Settings) -> list[Case]:
    """The candidates of one comparison. Raises `Error` if the network does not take the images or the mode."""
    spec = networks.load(network)
    size = (settings.size, settings.size) if settings.size else tuple(spec["input"][1:])
    try:
        last = shapes.layers(spec, size)[-1]
    except Error as error:
        raise Error(f"{network}, images of {size[0]}x{size[1]}: {error}") from None
    if mode == Mode.TRAIN and len(last.shape) > 1:
        raise Error(f"{network}: it ends in a map, not in a vector of logits to train on; use --mode infer")
    candidates = []
    for backend, dtype in itertools.product(settings.backends, settings.dtypes):
        case = {
            "spec": spec,
            "mode": mode,
            "size": size,
            "backend": backend,
            "dtype": dtype,
            "fold": False,
            "batch": settings.batch,
            "format": settings.layout or (Format.NCHW if backend == Backend.TORCH else Format.NHWC),
            "compile": settings.compiled or settings.cuda_graphs,
            "cuda_graphs": settings.cuda_graphs,
            "device": settings.device,
        }
        implementations = [AGAIN if peer == Peer.TWINS else peer for peer in settings.peers if backend in PEERS[peer]]
        fastest = {"format": Format.NHWC, "fold": mode == Mode.INFER}
        candidates.append(case | {"implementation": "twins"})
        if settings.recommended and not fastest.items() <= case.items():
            candidates.append(case | fastest | {"implementation": "recommended"})
        candidates += [case | {"implementation": implementation} for implementation in (*implementations, CEILING)]
    return candidates


def title(case: Case) -> str:
    """A case for people, without its implementation."""
    return f"{case['spec']['name']}, {case['mode']}, {case['backend']}"
