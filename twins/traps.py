"""The traps measured: how far a naive port is from PyTorch, and how far this one is, on small networks.

A naive behaviour is put back by `torch_impl.naive`, `keras_impl.naive` or `FORCED` here, and the ladder is climbed until a
tolerance is exceeded. Where no rung shows a trap, a probe of its own measures what it changes.
"""

import contextlib
import functools
import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from shared import images, recipes, shapes, traps, weights
from shared.checks import is_out_of_memory
from shared.spec import Spec

from . import backends, ladder, remote
from .backends import Backend, Engine, Package
from .ladder import TOLERANCES, Difference

Layers = list[dict[str, Any]]
LEAST = 1e-6  # the smallest error of a naive port that counts as one


class Measurement(NamedTuple):
    """How far a naive port and this one are from PyTorch."""

    name: str  # of the trap
    rung: str  # of the ladder, or what else is compared
    where: str  # what is first beyond the tolerance: a layer, an array, a step
    naive: float  # the largest relative difference at this rung; infinite if the framework refuses
    ours: float
    tolerance: float
    failure: str = ""  # the first sentence of the framework's refusal


@dataclass(eq=False)
class Case:
    """A small network and the training run that a trap is measured on."""

    layers: Layers
    side: int = 20  # of the images, in pixels
    batch: int = 3
    optimizer: dict[str, Any] = field(default_factory=lambda: {"name": "sgd", "learning_rate": 0.1, "momentum": 0.9})
    rates: tuple[float, ...] = (0.1, 0.1, 0.01)  # the learning rate of each step
    options: dict[str, Any] = field(default_factory=dict)  # other keys of a recipe
    judged_from: str = "activations"  # the first rung that is judged: those below it see too little
    drawn: tuple[str, ...] = ()  # weights that are drawn at random, where the initial ones are alike in all directions

    @property
    def spec(self) -> Spec:
        """The network."""
        return {"name": "small", "input": [3, self.side, self.side], "layers": self.layers}


def _conv(name: str, into: int, out: int, kernel: int = 3, **options: Any) -> dict[str, Any]:
    return {"name": name, "type": "conv", "in": into, "out": out, "kernel": kernel, **options}


def _layer(name: str, kind: str, **options: Any) -> dict[str, Any]:
    return {"name": name, "type": kind, **options}


def _end(features: int) -> Layers:
    """A linear classifier of ten classes."""
    return [_layer("flatten", "flatten"), {"name": "fc", "type": "linear", "in": features, "out": 10}]


_STEM = [_conv("conv1", 3, 8, stride=2, padding=1, bias=False), {"name": "bn1", "type": "batch_norm", "in": 8}]
_POOL = [*_STEM, _layer("maxpool", "max_pool", kernel=3, stride=2, padding=1), *_end(200)]
_MAPS = [*_STEM, _layer("avgpool", "global_avg_pool"), *_end(8)]
_LONG: dict[str, Any] = {"layers": _POOL, "batch": 32, "rates": (0.3,) * 20}  # at which differences grow, but not too much
_TANH = _layer("tanh", "scaled_tanh")


def _sgd(**options: Any) -> dict[str, Any]:
    return {"name": "sgd", "learning_rate": 0.1, "momentum": 0.9, **options}


# What the traps are measured on that need other than the first.
USUAL = Case(_POOL)
CASES = {
    "ceil-mode": Case([_conv("conv1", 3, 8), _layer("maxpool", "max_pool", kernel=3, ceil=True), *_end(392)], side=21),
    "average-pool-padding": Case(
        [_conv("conv1", 3, 8, stride=2), _layer("avgpool", "avg_pool", kernel=3, stride=1, padding=1), *_end(648)]
    ),
    "lrn-alpha": Case(
        [_conv("conv1", 3, 8, stride=2), _layer("lrn", "local_response_norm", size=5, alpha=1e-4, k=2), *_end(648)]
    ),
    "grouped-convolution": Case(
        [{"name": "layer1", "type": "bottleneck", "in": 3, "out": 16, "width": 8, "groups": 2, "stride": 2}, *_end(1600)]
    ),
    "dilation-with-stride": Case(
        [_conv("conv1", 3, 8, padding=2, dilation=2), _layer("pool", "max_pool", kernel=1, stride=2), *_end(800)]
    ),
    "resnet-version": Case([*_STEM, _layer("layer1", "bottleneck", **{"in": 8, "out": 16, "stride": 2}), *_end(400)]),
    "frozen-bn": Case(_POOL, options={"freeze": ["bn1"]}),
    "bias-before-batch-norm": Case([_conv("conv1", 3, 8, stride=2, padding=1), *_POOL[1:]]),
    "dropout-masks": Case([*_POOL[:-2], _layer("drop", "dropout", rate=0.5), *_POOL[-2:]]),
    "adam-epsilon": Case(_POOL, optimizer={"name": "adam", "learning_rate": 0.001}, rates=(0.001,) * 3),
    "weight-decay": Case(_POOL, optimizer=_sgd(weight_decay=0.01)),
    "weight-decay-float32": Case(**_LONG, optimizer=_sgd(weight_decay=0.1)),
    "learning-rate-float32": Case(**_LONG),
    "clip-norm": Case(_POOL, batch=32, optimizer=_sgd(clip_norm=0.1), rates=(1.0,) * 20),
    "label-smoothing": Case(_POOL, options={"label_smoothing": 0.1}),
    "class-weights": Case(_POOL, options={"class_weights": [1.0, 2.0, 3.0, 4.0, 5.0, 1.0, 1.0, 1.0, 1.0, 1.0]}),
    "averaged-weights": Case(_POOL, options={"ema": 0.9}),
    "half-precision-number": Case([_TANH, *_end(1200)]),
    "jax-x64": Case(**_LONG, judged_from="losses"),
    "jax-float32-functions": Case(**_LONG | {"layers": [*_STEM, _TANH, *_POOL[2:]]}, judged_from="losses"),
    "half-precision-sums": Case([*_STEM, _layer("relu", "relu"), _layer("avgpool", "avg_pool", kernel=32), *_end(8)], side=64),
    "jax-resize": Case(
        [_conv("conv1", 3, 8), _layer("up", "upsample", scale=4), _layer("avgpool", "global_avg_pool"), *_end(8)]
    ),
    "jax-transposed-kernel": Case(
        [*_STEM, _layer("up", "upsample_transposed", **{"in": 8, "scale": 2}), *_MAPS[-3:]], drawn=("up.weight",)
    ),
    "jax-unused-weights": Case(
        [*_STEM, _layer("layer1", "basic", **{"in": 8, "out": 16, "stride": 2, "shortcut": "unused"}), *_end(400)],
        optimizer=_sgd(weight_decay=0.01),
    ),
}


def _in_rgb(spec: Spec, plain: Callable[[Spec], dict[str, Any]] = images._preprocessing) -> dict[str, Any]:
    return plain(spec) | {"channels": "RGB"}


# As in `keras_impl.naive`: what the traps replace that lie in no framework's package
FORCED: dict[str, list[tuple[Any, str, Any]]] = {
    "bgr-input": [(images, "_preprocessing", _in_rgb)],
    "bias-before-batch-norm": [(ladder, "_kernels", lambda arrays: {})],
}


@contextlib.contextmanager
def put_back(packages: Iterable[Package], trap: str | None) -> Iterator[None]:
    """In this context the naive behaviour of a trap is in force, in whatever it lies; of None, nothing is."""
    with contextlib.ExitStack() as stack:
        if trap:
            stack.enter_context(traps.replaced(FORCED.get(trap, [])))
            for package in packages:
                stack.enter_context(package.naive.put_back(trap))
        yield


def climb(packages: list[Package], case: Case, trap: str | None = None) -> Iterator[tuple[str, list[Difference]]]:
    """(rung, differences) for the rungs 2 to 5 of the ladder, with the naive behaviour of a trap in force."""
    batch = np.random.default_rng(0).standard_normal((case.batch, 3, case.side, case.side))
    labels = np.arange(1, case.batch + 1) % 10
    recipe = {"name": "small", "network": case.spec, "data": "digits", "batch": case.batch, "steps": len(case.rates)}
    recipe = recipes.load(recipe | {"optimizer": case.optimizer, "precision": "float64", **case.options})
    with put_back(packages, trap):
        engines = [package.trainer(case.spec, recipe) for package in packages]
        state = weights.randomised(weights.initial(case.spec))
        state |= {name: np.random.default_rng(0).standard_normal(state[name].shape) for name in case.drawn}
        for engine in engines:
            engine.load(state)
        yield "activations", ladder.activations(engines, batch)
        yield "gradients", ladder.gradients(engines, batch, labels)
        yield "statistics", ladder.statistics(engines)
        losses = []
        for number, rate in enumerate(case.rates, start=1):
            ours, theirs = (engine.step(batch, labels, rate)[0] for engine in engines)
            losses.append(Difference(f"step {number}", ((), ()), ladder.relative(ours, theirs)))
        yield "losses", losses
        # What the optimiser keeps may be scaled otherwise and mean the same.
        yield "weights", [found for found in ladder.states(engines) if not found.name.startswith("optimizer.")]


def _climbed(packages: list[Package], trap: str) -> Measurement:
    """A trap of the ladder: the first rung whose tolerance is exceeded."""
    case, tolerances = CASES.get(trap, USUAL), TOLERANCES["float64"]
    order = list(tolerances)
    reached, first, naive, failure = "", None, np.inf, ""
    try:
        for rung, differences in climb(packages, case, trap):
            if order.index(rung) < order.index(case.judged_from):
                continue
            reached, first = rung, ladder.first_beyond(differences, tolerances[rung])
            if first:
                naive = ladder.largest(differences).value
                break
        else:
            naive = 0.0
    except Exception as error:  # a framework's refusal, of no common class
        if is_out_of_memory(error):
            raise
        reached = order[order.index(reached) + 1] if reached else order[0]
        failure = _first_sentence(error)
    ours = _ours(tuple(packages), case, reached)
    return Measurement(trap, reached, first.name if first else "", naive, ours, tolerances[reached], failure)


@functools.cache
def _own_climb(packages: tuple[Package, ...], case: Case) -> tuple[Iterator[tuple[str, list[Difference]]], dict[str, float]]:
    """The ladder without a trap, to be climbed as far as needed, and the largest differences of the rungs that were."""
    return climb([*packages], case), {}


def _ours(packages: tuple[Package, ...], case: Case, rung: str) -> float:
    """The largest difference at a rung without a trap; many traps share a case, which is climbed once."""
    climbing, known = _own_climb(packages, case)
    while rung not in known:
        reached, differences = next(climbing)
        known[reached] = ladder.largest(differences).value
    return known[rung]


def _first_sentence(error: Exception) -> str:
    """What an error says first, without TensorFlow's names of operations, "{{function_node …}}"."""
    text = re.sub(r"\{\{.*?\}\} ", "", f"{type(error).__name__}: {error}")
    return text.splitlines()[0].partition(". ")[0]


def _started(packages: list[Package], spec: Spec, dtype: str, trap: str | None = None) -> list[Engine]:
    """An engine a package with random batch norms, built with the naive behaviour of a trap in force."""
    state = weights.randomised(weights.initial(spec))
    engines = []
    with put_back(packages, trap):
        for package in packages:
            net = package.build(spec, dtype=dtype)
            package.load(net, state)
            engines.append(package.Engine(net))
    return engines


def _photograph() -> np.ndarray:
    """scikit-learn's picture of a temple, bytes (height, width, 3)."""
    from sklearn.datasets import load_sample_image

    return load_sample_image("china.jpg")


def _both(packages: list[Package], trap: str, measure: Callable[[str | None], Difference]) -> tuple[Difference, Difference]:
    """What is measured with the naive behaviour of a trap in force, and without."""
    with put_back(packages, trap):
        naive = measure(trap)
    return naive, measure(None)


def _initialisers(packages: list[Package], trap: str) -> Measurement:
    """The norms of the initial weights: draws of one distribution have nearly the same."""

    def measure(_: str | None) -> Difference:
        norms = [{n: np.linalg.norm(a) for n, a in p.state(p.build(USUAL.spec)).items() if a.any()} for p in packages]
        return Difference("conv1.weight", ((), ()), ladder.relative(*(norm["conv1.weight"] for norm in norms)))

    naive, ours = _both(packages, trap, measure)
    return Measurement(trap, "initial weights", naive.name, naive.value, ours.value, 0.0)


def _output(dtype: str, name: str, packages: list[Package], trap: str) -> Measurement:
    """What a layer gives in a lower precision, or the network, of which "fc" is the last."""
    case = CASES.get(trap, USUAL)
    batch = np.random.default_rng(0).standard_normal((3, 3, case.side, case.side)).astype("float32")

    def measure(forced: str | None) -> Difference:
        engines = _started(packages, case.spec, dtype, forced)
        ours, theirs = (engine.channels_first(engine.activations(batch)[name]) for engine in engines)
        return Difference(name, ((), ()), ladder.relative(ours, theirs))

    naive, ours = _both(packages, trap, measure)
    rung = f"{dtype} {'logits' if name == 'fc' else 'activations'}"
    return Measurement(trap, rung, name, naive.value, ours.value, TOLERANCES[dtype]["logits"])


def _upsampled(packages: list[Package], trap: str) -> Measurement:
    batch = np.random.default_rng(0).standard_normal((2, 3, 20, 20))

    def measure(forced: str | None) -> Difference:
        spec = CASES.get(trap, Case(_MAPS)).spec
        ours, theirs = (engine.dense_class_maps(batch) for engine in _started(packages, spec, "float64", forced))
        return Difference("upsampled", ((), ()), ladder.relative(ours, theirs))

    naive, ours = _both(packages, trap, measure)
    return Measurement(trap, "class maps", naive.name, naive.value, ours.value, TOLERANCES["float64"]["activations"])


def _parameters(packages: list[Package], trap: str) -> Measurement:
    """ResNet-18's, counted by Keras's own method and by arithmetic, against PyTorch's."""
    one, other = (package.build("resnet18") for package in packages)
    expected = sum(weight.numel() for weight in one.parameters())
    naive = ladder.relative(expected, other.count_params())
    ours = ladder.relative(expected, shapes.parameters(shapes.layers(other.spec)))
    return Measurement(trap, "parameters", "resnet18", naive, ours, 0.0)


def _bgr(packages: list[Package], trap: str) -> Measurement:
    """The logits for a photograph: PyTorch's with the colours as the weights expect them, Keras's with and without the trap."""
    caffe = {"channels": "BGR", "scale": 1.0, "mean": [103.939, 116.779, 123.68], "std": [1.0, 1.0, 1.0]}
    spec = USUAL.spec | {"preprocessing": caffe}
    one, other = _started(packages, spec, "float64")
    expected = one.predict(images.preprocess([_photograph()], spec, "float64"))

    def measure(_: str | None) -> Difference:
        logits = other.predict(images.preprocess([_photograph()], spec, "float64"))
        return Difference("fc", ((), ()), ladder.relative(expected, logits))

    naive, ours = _both(packages, trap, measure)
    return Measurement(trap, "logits", naive.name, naive.value, ours.value, TOLERANCES["float64"]["activations"])


def _resized(packages: list[Package], trap: str) -> Measurement:
    """A photograph of 640x427 pixels at 64x64, against Pillow's, which torchvision uses."""
    small = Image.fromarray(_photograph()).resize((64, 64), Image.Resampling.BILINEAR)

    def measure(_: str | None) -> Difference:
        pixels = images.pixels([_photograph()], {"input": [3, 64, 64]})[0]
        return Difference("pixels", ((), ()), ladder.relative(np.asarray(small) / 255, pixels / 255))

    naive, ours = _both(packages, trap, measure)
    return Measurement(trap, "pixels", naive.name, naive.value, ours.value, 0.0)


PROBES: dict[str, Callable[[list[Package], str], Measurement]] = {
    "initialisers": _initialisers,
    "tf32": functools.partial(_output, "float32", "fc"),
    "jax-matmul-precision": functools.partial(_output, "float32", "fc"),
    "half-precision-number": functools.partial(_output, "bfloat16", "tanh"),
    "half-precision-sums": functools.partial(_output, "bfloat16", "avgpool"),
    "jax-resize": _upsampled,
    "upsample-corners": _upsampled,
    "parameter-count": _parameters,
    "bgr-input": _bgr,
    "resize-antialias": _resized,
}


def measure(packages: list[Package], trap: str) -> Measurement:
    """How far a naive port and ours are from PyTorch, measured now. `packages` are `torch_impl` and `keras_impl`.

    The traps of one backend of Keras's are measured there alone.
    """
    logging.getLogger("tensorflow").setLevel(logging.ERROR)  # it warns of functions made in a loop, as ours are
    return PROBES.get(trap, _climbed)(packages, trap)


@contextlib.contextmanager
def on_jax(names: Sequence[str]) -> Iterator[Iterator[Measurement]]:
    """The traps measured in a separate process, which this context starts, since Keras has one backend per process.

    Raises `Error` if JAX or PyTorch is missing, and the iterator does if the process fails.
    """
    backends.check_installed(*dict.fromkeys([*backends.needed(Backend.TORCH), *backends.needed(Backend.JAX)]))
    # Each function runs once or twice: most of the time, XLA would compile.
    quick = f"{os.environ.get('XLA_FLAGS', '')} --xla_backend_optimization_level=0"
    environment = {"KERAS_BACKEND": "jax", "JAX_ENABLE_X64": "1", "XLA_FLAGS": quick, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    process = remote.Process("JAX", _start_with_jax, environment)
    try:
        for name in names:
            process.send(_measure_there, name)
        yield (process.result() for _ in names)
    finally:
        process.kill()


def _start_with_jax() -> list[Package]:
    return [*backends.start(Backend.TORCH), *backends.start(Backend.JAX)]


def _measure_there(name: str) -> Measurement:
    return measure(remote.started(), name)
