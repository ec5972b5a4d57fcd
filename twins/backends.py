"""Starting the frameworks, which happens only here.

Everything else asks here for a package, `torch_impl` or `keras_impl`, or for the engines of a network.
"""

import functools
import importlib
import importlib.util
import os
import sys
from collections.abc import Collection, Iterable, Mapping
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Protocol

from shared import processes
from shared.checks import Error, in_words
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
    ALL = "all"


KERAS_BACKENDS = {Backend.TF: "tensorflow", Backend.JAX: "jax", Backend.KERAS_TORCH: "torch"}  # Keras's names
REQUIREMENTS = {  # of packages that may be missing: the name to show, and the one to pip install
    "torch": ("PyTorch", "'resnet-twins[torch]'"),
    "torchvision": ("torchvision", "'resnet-twins[torch]'"),
    "keras": ("Keras", "'resnet-twins[keras]'"),
    "tensorflow": ("TensorFlow", "'resnet-twins[keras]'"),
    "jax": ("JAX", "'resnet-twins[jax]'"),
}
TITLES = {  # as the engines' `framework`
    Backend.TORCH: "PyTorch",
    Backend.TF: "Keras",
    Backend.JAX: "JAX",
    Backend.KERAS_TORCH: "Keras on PyTorch",
}
ENGINES = tuple(TITLES)  # what trains and predicts
SEVERAL = {  # side by side
    Backend.BOTH: (Backend.TORCH, Backend.TF),
    Backend.ALL: (Backend.TORCH, Backend.TF, Backend.JAX),
}


class Engine(Protocol):
    """A network behind NumPy arrays, whatever its framework, for comparing, training and predicting.

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
        raise Error(f"--backend {backend}: {reason}; expected {in_words(expected, 'or')}")


def frameworks(backend: Backend) -> list[str]:
    """The names of the frameworks that `start` starts, as the engines have them."""
    return [TITLES[each] for each in SEVERAL.get(backend, (backend,))]


def start(backend: Backend, tf32: bool = False) -> list[Package]:
    """The packages of a backend, one of `ENGINES` or of `SEVERAL`, with their frameworks started.

    A process has one Keras backend, so JAX beside TensorFlow runs in a process of its own, as `remote` says, and the package
    is a proxy. Frameworks compute float32 in full, but with `tf32` on a GPU as they do by default, which is faster and differs
    by more than the tolerance of the ladder. Raises `Error`, naming all that is missing, unless they are installed.
    """
    try:
        check_installed(*needed(backend))
    except Error as error:
        others = {Backend.TORCH: Backend.TF, Backend.TF: Backend.TORCH, Backend.ALL: Backend.BOTH}
        other = others.get(backend)
        hint = f", or pass --backend {other}" if other and installed(other) else ""
        raise Error(f"{error}{hint}") from None
    if backend in SEVERAL:
        os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")  # TensorFlow would take all of a GPU's memory
    # First, since it starts while the others do.
    beside: list[Any] = [_jax_apart()] if backend == Backend.ALL else []
    packages: list[Package] = []
    # PyTorch before TensorFlow: it looks for a GPU, and warns if TensorFlow has looked before it.
    if backend in (Backend.TORCH, *SEVERAL):
        packages.append(_started(Backend.TORCH, tf32))
    if backend != Backend.TORCH:
        # TensorFlow leaves its faster kernels off where the processor has no AVX-512. Not for anyone's models: see `Conv` in
        # `keras_impl.layers` for what these kernels do to some.
        os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
        packages.append(_started(Backend.TF if backend in SEVERAL else backend, tf32))
    return packages + beside


def _started(backend: Backend, tf32: bool = False) -> Any:
    """The package of one of `ENGINES`, as `start` gives it."""
    package = pytorch() if backend == Backend.TORCH else keras(backend=backend)
    if not tf32:
        _switch_tf32_off(KERAS_BACKENDS.get(backend, "torch"))
    return package


def _switch_tf32_off(framework: str) -> None:
    """Have a framework multiply float32 numbers in full: recent GPUs would round them to 10 bits of mantissa, TPUs to 7."""
    module = importlib.import_module(framework)
    if framework == "tensorflow":
        module.config.experimental.enable_tensor_float_32_execution(False)
    elif framework == "jax":
        module.config.update("jax_default_matmul_precision", "float32")
    else:
        module.backends.cudnn.allow_tf32 = False  # for matrix products it is off by default


def _jax_apart() -> Any:
    from . import remote

    environment = {"KERAS_BACKEND": KERAS_BACKENDS[Backend.JAX], "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    return remote.KerasPackage(TITLES[Backend.JAX], functools.partial(_started, Backend.JAX), environment)


def installed(backend: Backend) -> bool:
    """Whether `start` could start a backend."""
    return not _missing(needed(backend))


def pytorch(needed_for: str = "", torchvision: bool = False) -> Any:
    """`torch_impl`. Raises `Error` if PyTorch is not installed, or torchvision if that is needed too."""
    check_installed(*needed(Backend.TORCH), *(["torchvision"] if torchvision else []), needed_for=needed_for)
    _set_torch()
    with silence():
        return importlib.import_module("torch_impl")


def _set_torch() -> None:
    """What PyTorch reads once."""
    # Its idle threads would spin, and TensorFlow would wait for a core.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # large arrays in large pages, where Linux has them: new ones cost less


def _device_of_keras_torch() -> dict[str, str]:
    """The variable that says where Keras on PyTorch runs: on CUDA's GPU or the processor, as PyTorch's twin.

    By itself, Keras would take Apple's GPUs, which have no float64. Raises `Error` if the environment names a device that is
    not there, or none.
    """
    torch = importlib.import_module("torch")
    has_gpu = torch.cuda.is_available()
    device = os.environ.get("KERAS_TORCH_DEVICE")
    if device is None:
        return {"KERAS_TORCH_DEVICE": "cuda" if has_gpu else "cpu"}
    if device.startswith("cuda") and not has_gpu:
        raise Error(f"KERAS_TORCH_DEVICE is {device!r}, but PyTorch sees no GPU: unset it, or set it to cpu")
    try:
        torch.zeros(1, device=device).item()  # which the device named "meta" refuses, too
    except (RuntimeError, AssertionError) as error:
        first = f"{error}".partition("\n")[0]
        raise Error(f"KERAS_TORCH_DEVICE is {device!r}: {first}; unset it, or set it to cpu") from None
    return {"KERAS_TORCH_DEVICE": device}


def keras(needed_for: str = "", backend: Backend = Backend.TF) -> Any:
    """`keras_impl`, on TensorFlow or another backend, whatever `KERAS_BACKEND` says.

    Raises `Error` if one of them is not installed, or Keras runs on another backend in this process already.
    """
    name = KERAS_BACKENDS[backend]
    check_installed(*needed(backend), needed_for=needed_for)
    _set_torch()
    variables = {"KERAS_BACKEND": name}
    if backend == Backend.JAX:
        os.environ.setdefault("JAX_ENABLE_X64", "1")  # JAX reads it once; without it, float64 silently becomes float32
    elif backend == Backend.KERAS_TORCH:
        variables |= _device_of_keras_torch()
    try:  # the variables are not left changed: a user's own processes would have them too
        with silence(), processes.environment(variables):
            package = importlib.import_module("keras_impl")
    except ValueError as error:  # JAX reads its variables: JAX_ENABLE_X64=maybe
        raise Error(f"Keras on {name} failed to start: {error}") from None
    running = importlib.import_module("keras").backend.backend()
    if running != name:
        raise Error(
            f"{needed_for or 'this'} needs Keras on {name}, but in this process Keras already runs on {running}; "
            f"it has one backend per process: set KERAS_BACKEND={name} before Keras is imported"
        )
    return package


def anyones_keras() -> Any:
    """`keras_impl` for anyone's models: on JAX if Keras runs there already or `KERAS_BACKEND` says so, else on TensorFlow."""
    started = sys.modules.get("keras")
    name = started.backend.backend() if started else os.environ.get("KERAS_BACKEND")
    return keras("recording a Keras model", Backend.JAX if name == KERAS_BACKENDS[Backend.JAX] else Backend.TF)


def recorder(framework: str) -> Any:
    """The recorder of "torch" or "keras": `record(network, inputs)` gives a `shared.operations.Recording`."""
    package = pytorch() if framework == "torch" else anyones_keras()
    return importlib.import_module(f"{package.__name__}.recording")


def check_installed(*packages: str, needed_for: str = "") -> None:
    """Raise `Error`, with the command that installs them, unless all packages are installed.

    The message begins with what they are `needed_for`, if that is given.
    """
    missing = _missing(packages)
    if not missing:
        return
    titles, requirements = zip(*(REQUIREMENTS[package] for package in missing), strict=True)
    listed, verb = in_words(titles), "are" if titles[1:] else "is"
    command = f"pip install {' '.join(dict.fromkeys(requirements))}"
    if needed_for:
        raise Error(f"{needed_for} needs {listed}, which {verb} not installed: {command}")
    raise Error(f"{listed} {verb} not installed: {command}")


def _missing(packages: Iterable[str]) -> list[str]:
    return [package for package in packages if not importlib.util.find_spec(package)]


def needed(backend: Backend) -> list[str]:
    """The packages that a backend, one of `ENGINES` or of `SEVERAL`, imports, each once."""
    packages = {Backend.TORCH: ["torch"]} | {each: ["keras", name] for each, name in KERAS_BACKENDS.items()}
    return list(dict.fromkeys(name for each in SEVERAL.get(backend, (backend,)) for name in packages[each]))


def engines(
    packages: Iterable[Package], spec: "Spec", state: "State", dtype: str = "float32", on_gpu: bool = False
) -> list[Engine]:
    """An engine a package that holds the network with the weights of a state, ready to predict.

    Where there is a GPU, Keras's are on it in any case, and PyTorch's `on_gpu`.
    """
    ready = []
    for package in packages:
        net = package.build(spec, dtype=dtype)
        package.load(net, state)
        if on_gpu and hasattr(package, "device"):
            net.to(package.device())
        ready.append(package.Engine(net))
    return ready
