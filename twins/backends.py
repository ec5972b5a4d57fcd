"""The frameworks: the only place that starts one.

Everything else asks here for a package, `torch_impl` or `keras_impl`, or for the engines of a network.
"""

import importlib
import importlib.util
import os
from collections.abc import Collection, Iterable, Mapping
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Protocol

from shared.checks import Error
from shared.coexist import silence

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    import numpy as np

    from shared.mixup import Labels
    from shared.recipes import Recipe
    from shared.spec import Spec
    from shared.weights import State


class Backend(StrEnum):
    """What a network runs in."""

    TORCH = "torch"
    TF = "tf"
    JAX = "jax"
    KERAS_TORCH = "keras-torch"
    BOTH = "both"


KERAS_BACKENDS = {Backend.TF: "tensorflow", Backend.JAX: "jax", Backend.KERAS_TORCH: "torch"}  # Keras's names
REQUIREMENTS = {  # of a package that may be missing: its name for people, and what pip installs it by
    "torch": ("PyTorch", "'resnet-twins[torch]'"),
    "torchvision": ("torchvision", "'resnet-twins[torch]'"),
    "keras": ("Keras", "'resnet-twins[keras]'"),
    "tensorflow": ("TensorFlow", "'resnet-twins[keras]'"),
}
ENGINES = (Backend.TORCH, Backend.TF)  # what trains and predicts
NO_ENGINE = "networks run there (benchmarks/run.py measures them), but they neither train nor predict there yet"


class Engine(Protocol):
    """A network in NumPy arrays, whatever its framework: what comparing, training and predicting drive.

    Images are (batch, channels, height, width), labels whole numbers or `Mixed`; weights and gradients have PyTorch's names and
    layouts. In one of several processes, `step` takes that process's share of a batch, every so-many-th image of it.
    """

    framework: str
    rank: int  # of this process, of as many `processes`
    processes: int
    shares: int  # into which a batch is divided

    @property
    def net(self) -> Any: ...

    def step(self, images: "np.ndarray", labels: "Labels", learning_rate: float | None = None) -> tuple[float, int]: ...
    def loss(self, images: "np.ndarray", labels: "Labels") -> float: ...
    def predict(self, images: "np.ndarray") -> "np.ndarray": ...
    def class_maps(self, images: "np.ndarray") -> "np.ndarray": ...
    def dense_class_maps(self, images: "np.ndarray") -> "np.ndarray": ...
    def activations(self, images: "np.ndarray") -> "dict[str, np.ndarray]": ...
    def gradients(self, images: "np.ndarray", labels: "Labels") -> "dict[str, np.ndarray]": ...
    def unit_gradients(self, images: "np.ndarray", units: "Mapping[str, tuple[int, int]]") -> "dict[str, np.ndarray]": ...
    def state(self) -> "State": ...
    def load(self, arrays: "State", steps: int = 0) -> None: ...
    def thaw(self, step: int) -> None: ...
    def averaged(self) -> "AbstractContextManager[None]": ...
    def total(self, array: "np.ndarray") -> "np.ndarray": ...
    def channels_first(self, output: "np.ndarray") -> "np.ndarray": ...


class Package(Protocol):
    """`torch_impl` or `keras_impl`."""

    Engine: Any
    checkpoints: Any  # the submodules of those names
    export: Any
    naive: Any

    def build(self, network: "str | Spec", seed: int = 0, dtype: str = "float32") -> Any: ...
    def load(self, net: Any, state: "State") -> None: ...
    def state(self, net: Any) -> "State": ...
    def trainer(self, spec: "Spec", recipe: "Recipe", compiled: bool = False) -> Engine: ...


def check_backend(backend: Backend, supported: Collection[Backend], reason: str) -> None:
    """Raise `Error`, with the reason, unless the backend is one of those that a command supports."""
    if backend not in supported:
        expected = [f"{name}" for name in Backend if name in supported]
        why = reason if backend in (*ENGINES, Backend.BOTH) else NO_ENGINE
        raise Error(f"--backend {backend}: {why}; expected {' or '.join([', '.join(expected[:-1]), expected[-1]])}")


def frameworks(backend: Backend) -> list[str]:
    """The names of the frameworks that `start` starts."""
    return {Backend.TORCH: ["PyTorch"], Backend.TF: ["TensorFlow"]}.get(backend, ["PyTorch", "TensorFlow"])


def start(backend: Backend) -> list[Package]:
    """The packages of a backend, one of `ENGINES` or both, with their frameworks started.

    Raises `Error`, naming all that is missing, unless they are installed.
    """
    try:
        check_installed(*needed(backend))
    except Error as error:
        other = {Backend.TORCH: Backend.TF, Backend.TF: Backend.TORCH}.get(backend)
        hint = f", or pass --backend {other}" if other and installed(other) else ""
        raise Error(f"{error}{hint}") from None
    packages: list[Package] = []
    if backend != Backend.TF:  # PyTorch first: it looks for a GPU, and warns if TensorFlow has looked before it
        packages.append(pytorch())
    if backend != Backend.TORCH:
        packages.append(keras())
    return packages


def installed(backend: Backend) -> bool:
    """Whether `start` could start a backend."""
    return not _missing(needed(backend))


def pytorch(needed_for: str = "", torchvision: bool = False) -> Any:
    """`torch_impl`. Raises `Error` if PyTorch is not installed, or torchvision if that is needed too."""
    check_installed(*needed(Backend.TORCH), *(["torchvision"] if torchvision else []), needed_for=needed_for)
    # Set before it starts: PyTorch's idle threads would spin, and TensorFlow wait for a core.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    with silence():
        return importlib.import_module("torch_impl")


def keras(needed_for: str = "") -> Any:
    """`keras_impl`, on TensorFlow, whatever `KERAS_BACKEND` says.

    Raises `Error` if one of them is not installed, or Keras runs on another backend in this process already.
    """
    name = KERAS_BACKENDS[Backend.TF]
    check_installed(*needed(Backend.TF), needed_for=needed_for)
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ["KERAS_BACKEND"] = name
    with silence():
        package = importlib.import_module("keras_impl")
    running = importlib.import_module("keras").backend.backend()
    if running != name:
        raise Error(
            f"{needed_for or 'this'} needs Keras on {name}, but in this process Keras runs on {running} already; "
            f"set KERAS_BACKEND={name} before Keras is imported"
        )
    return package


def check_installed(*packages: str, needed_for: str = "") -> None:
    """Raise `Error`, with the command that installs them, unless all packages are installed.

    The message begins with what they are `needed_for`, if that is given.
    """
    missing = _missing(packages)
    if not missing:
        return
    titles, requirements = zip(*(REQUIREMENTS[package] for package in missing), strict=True)
    listed = " and ".join([", ".join(titles[:-1]), titles[-1]] if titles[1:] else titles)
    verb = "are" if titles[1:] else "is"
    command = f"pip install {' '.join(dict.fromkeys(requirements))}"
    if needed_for:
        raise Error(f"{needed_for} needs {listed}, which {verb} not installed: {command}")
    raise Error(f"{listed} {verb} not installed: {command}")


def _missing(packages: Iterable[str]) -> list[str]:
    return [package for package in packages if not importlib.util.find_spec(package)]


def needed(backend: Backend) -> list[str]:
    """The packages that a backend, one of `ENGINES` or both, imports."""
    packages = {Backend.TORCH: ["torch"], Backend.TF: ["keras", "tensorflow"]}
    return packages.get(backend, [*packages[Backend.TORCH], *packages[Backend.TF]])


def engines(packages: Iterable[Package], spec: "Spec", state: "State", dtype: str = "float32") -> list[Engine]:
    """An engine a package that holds the network with the weights of a state, ready to predict."""
    ready = []
    for package in packages:
        net = package.build(spec, dtype=dtype)
        package.load(net, state)
        ready.append(package.Engine(net))
    return ready
