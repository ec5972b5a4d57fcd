"""The ladder of parity: how far two engines that hold the same weights are apart.

A difference is relative, ||a - b|| / ||a|| for each array. The first engine is a, the reference. Arrays of the two engines
are compared in PyTorch's names and layouts.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from . import data as datasets
from . import shapes
from .spec import Error
from .weights import initial, randomised

# What may differ by how much, by the precision of the networks: one bound a rung, for every network.
BOUNDS = {
    "float64": {"activations": 1e-12, "gradients": 1e-9, "statistics": 1e-12, "losses": 1e-10, "weights": 1e-10},
    "float32": {"logits": 1e-4},
    "bfloat16": {"logits": 3e-2},
}


MOMENTUM = 0.9  # of the training runs
CEILING = 1e-6  # a bound that is more than this, for a network that magnifies rounding, says little


class Difference(NamedTuple):
    """How far one array of the second engine is from the first's."""

    name: str
    shapes: tuple[tuple[int, ...], tuple[int, ...]]  # as the two frameworks have them, without the batch
    value: float


def relative(a, b, scale=None):
    """||a - b|| / ||a||, or over ||scale|| where that is given. Infinite where the shapes differ."""
    if np.shape(a) != np.shape(b):
        return np.inf
    distance = np.linalg.norm(np.subtract(a, b))
    return float(distance / np.linalg.norm(a if scale is None else scale)) if distance != 0 else 0.0


def largest(differences):
    """The largest of them; one that is no number counts as largest."""
    return max(differences, key=lambda d: np.inf if np.isnan(d.value) else d.value)


def first_beyond(differences, bound):
    """The first that is not within the bound, or None."""
    return next((d for d in differences if not d.value <= bound), None)


def activations(engines, images):
    """Rung 2: the output of every layer in evaluation mode."""
    ours, theirs = (engine.activations(images) for engine in engines)
    pairs = [(name, ours.get(name), theirs.get(name)) for name in ours | theirs]
    found = []
    for name, a, b in pairs:
        if a is None or b is None:
            found.append(Difference(name, ((), ()), np.inf))
            continue
        value = relative(engines[0].channels_first(a), engines[1].channels_first(b))
        found.append(Difference(name, (a.shape[1:], b.shape[1:]), value))
    return found


def gradients(engines, images, labels):
    """Rung 3: the gradient of every parameter and of the image, in training mode.

    The bias of a convolution is measured against the gradient of its kernel where that is the larger. For a batch norm takes
    away what a bias before it adds, be there a pool or a convolution between them: the true gradient is zero then, and what
    is computed is rounding noise, as large as itself in the other framework.
    """
    ours, theirs = (engine.gradients(images, labels) for engine in engines)
    return _all(ours, theirs, _kernels(ours))


def statistics(engines):
    """Rung 4: the running statistics of batch norms, after passes in training mode."""
    states = [engine.state() for engine in engines]
    running = [{k: v for k, v in state.items() if ".running_" in k} for state in states]
    return _all(*running)


def states(engines):
    """Rung 5: all weights, running statistics and arrays of the optimiser, after steps of training.

    What the optimiser keeps of the bias of a convolution is measured as its gradient is, for the same reason.
    """
    return between(*(engine.state() for engine in engines))


def between(ours, theirs):
    """As `states`, of two states."""
    return _all(ours, theirs, _kernels({name: array for name, array in ours.items() if name.startswith("optimizer.")}))


def _kernels(arrays):
    """{name of the bias of a convolution: its own array or the kernel's, whichever is larger}."""
    found = {}
    for name, array in arrays.items():
        kernel = arrays.get(name.removesuffix("bias") + "weight")
        if name.endswith(".bias") and np.ndim(kernel) == 4:
            found[name] = max(array, kernel, key=np.linalg.norm)
    return found


def _all(ours, theirs, scales=None):
    scales = scales or {}
    found = []
    for name in ours | theirs:
        if name not in ours or name not in theirs:
            found.append(Difference(name, ((), ()), np.inf))
        else:
            a, b = ours[name], theirs[name]
            found.append(Difference(name, (a.shape, b.shape), relative(a, b, scales.get(name))))
    return found


def one_rounding_apart(state, dtype):
    """The state with its numbers scaled by the smallest step away from 1 in the precision, up and down in turn."""
    step = 2.0**-7 if dtype == "bfloat16" else np.finfo(dtype).eps
    return {name: array * (1 + step * np.resize([1, -1], array.shape)).astype(array.dtype) for name, array in state.items()}


def chaos(package, spec, state, images, labels, dtype="float64", looked_at=None):
    """{rung: largest difference} of a framework from itself, when its weights begin one rounding apart: rungs 2 to 4.

    Rung 2 is of the images `looked_at`, if given.

    What comes to more than a bound there is the network's doing, which makes large what is smallest, and not a framework's.
    """
    engines = []
    for change in (dict, lambda state: one_rounding_apart(state, dtype)):
        net = package.build(spec, dtype=dtype)
        package.load(net, state)
        package.load(net, change(package.state(net)))
        engines.append(package.Engine(net))
    looked_at = images if looked_at is None else looked_at
    found = {"activations": activations(engines, looked_at), "gradients": gradients(engines, images, labels)}
    found["statistics"] = statistics(engines)
    return {rung: largest(differences).value for rung, differences in found.items() if differences}


def first_rate(loss, gradients):
    """A learning rate for a first look at any network: its first step takes 2 % off the loss, to first order; at most 0.05."""
    square = sum(float(np.sum(np.square(g))) for name, g in gradients.items() if name != "input")
    return min(0.05, 0.02 * loss / square) if square else 0.05


class Step(NamedTuple):
    """One step of training: both losses, their relative difference, and the first engine's from its control."""

    losses: tuple[float, float]
    difference: float
    control: float


@dataclass
class Report:
    """What `run` found."""

    network: str
    dtype: str
    frameworks: tuple[str, str]
    size: tuple[int, int]
    parameters: tuple[int, int, int]  # by arithmetic, and in the two networks
    activations: list[Difference]
    gradients: list[Difference] = field(default_factory=list)
    statistics: list[Difference] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    weights: list[Difference] = field(default_factory=list)
    chaos: dict = field(default_factory=dict)  # what `chaos` gives, where a rung is beyond its bound
    training: dict = field(default_factory=dict)  # data, size, batch, learning rate, images tested
    accuracy: tuple[float, float] | None = None
    same_predictions: bool | None = None
    left_out: str = ""  # what could not be compared, and why

    @property
    def judged_steps(self):
        """The number of steps before the run is chaotic, which are those that a bound can hold for.

        A run is chaotic where the first framework departs from itself by a thousandth of the bound when its weights begin
        one rounding apart: it then makes large what is smallest, and another framework rounds in thousands of places.
        """
        limit = BOUNDS[self.dtype].get("losses", np.inf) / 1000
        return next((i for i, step in enumerate(self.steps) if step.control > limit), len(self.steps))

    @property
    def bounds(self):
        """{rung: what may differ by how much}: ten times what the first framework departs from itself, where that is more."""
        return {rung: max(bound, 10 * self.chaos.get(rung, 0)) for rung, bound in BOUNDS[self.dtype].items()}

    @property
    def first_diverging_layer(self):
        """The name of the first layer whose output is beyond the bound, or None."""
        bounds = self.bounds
        first = first_beyond(self.activations, bounds.get("activations", bounds.get("logits")))
        return first and first.name

    @property
    def broken(self):
        """A line for each bound of the ladder that is not kept."""
        bounds, lines = self.bounds, []
        if len(set(self.parameters)) > 1:
            lines.append("parameters: {:,} by arithmetic, {:,} and {:,} in the networks".format(*self.parameters))
        run_is_judged = self.judged_steps == len(self.steps)
        rungs = {"activations": self.activations, "gradients": self.gradients, "statistics": self.statistics}
        rungs["logits"] = self.activations[-1:]
        ended = next((number for number, step in enumerate(self.steps, start=1) if not np.isfinite(step.losses).all()), None)
        if ended:
            lines.append(f"losses: step {ended} has none that is a number; a smaller learning rate would be right")
        rungs["losses"] = [
            Difference(f"step {number}", ((), ()), step.difference)
            for number, step in enumerate(self.steps[: self.judged_steps], start=1)
        ]
        rungs["weights"] = self.weights if run_is_judged else []
        for rung, bound in bounds.items():
            first = first_beyond(rungs[rung], bound)
            if first and rung == "logits":
                lines.append(f"logits: they differ by {first.value:.1e}; the bound is {bound:g}")
            elif first:
                lines.append(f"{rung}: {first.name} is the first to diverge, by {first.value:.1e}; the bound is {bound:g}")
        if run_is_judged and self.same_predictions is False and "losses" in bounds:
            lines.append("predictions: the trained networks predict different classes")
        return lines


def run(
    packages,
    spec,
    weights=None,
    image=None,
    data=None,
    size=None,
    dtype="float64",
    steps=20,
    rate=None,
    say=lambda text: None,
):
    """Climb the ladder with a network in two packages, `torch_impl` and `keras_impl`; returns a `Report`.

    `weights` is a state for both, or None: then rungs 2 to 4 have the initial weights with randomised batch norms, and
    training starts from the initial weights. Rungs 2 to 4 look at white noise; rung 2 at `image`, (height, width, channels),
    if there is one. Training is on `data`, by default the digits; labels beyond the network's classes wrap around. `size` is
    (height, width), the spec's by default; `rate` the learning rate, by default `first_rate`; `say` hears what is being done.
    """
    rows = shapes.layers(spec, size)
    channels, *own_size = spec["input"]
    size = tuple(size or own_size)
    state = initial(spec) if weights is None else weights
    if not state:
        raise Error(f"{spec['name']} has no weights, so there is nothing to compare")

    def images(indices, size):
        return datasets.prepare(data.x_train[indices], channels, size, precision)

    precision = "float64" if dtype == "float64" else "float32"
    say("building the networks")
    nets = [package.build(spec, dtype=dtype) for package in packages]
    _load(packages, nets, randomised(state) if weights is None else state)
    engines = [package.Engine(net) for package, net in zip(packages, nets, strict=True)]
    say("activations")
    # White noise: in a smooth picture all positions are alike, and batch norms, which take away what is alike, leave rounding.
    noise = np.random.default_rng(0).standard_normal((4, channels, *size)).astype(precision)
    looked_at = noise
    if image is not None:
        wanted = spec if size == tuple(own_size) else {"input": [channels, *size]}  # another size leaves out resize and crop
        looked_at = datasets.preprocess([image], wanted, precision)
    trainable = {name for row in shapes.leaves(rows) for name in row.weights if ".running_" not in name}
    counts = [sum(array.size for name, array in engine.state().items() if name in trainable) for engine in engines]
    report = Report(
        network=spec["name"],
        dtype=dtype,
        frameworks=tuple(engine.framework for engine in engines),
        size=size,
        parameters=(shapes.parameters(rows), *counts),
        activations=activations(engines, looked_at),
    )
    if len(rows[-1].shape) > 1:
        report.left_out = "gradients and training are left out: the network ends in a map, not in a vector of logits"
        return report
    classes = rows[-1].shape[0]
    say("gradients")
    report.gradients = gradients(engines, noise, np.arange(len(noise)) % classes)
    report.statistics = statistics(engines)
    bounds = BOUNDS[dtype]
    rungs = [rung for rung in ("activations", "gradients", "statistics") if rung in bounds]
    if any(first_beyond(getattr(report, rung), bounds[rung]) for rung in rungs):
        say(f"how far {engines[0].framework} departs from itself")
        start = randomised(state) if weights is None else state
        report.chaos = chaos(packages[0], spec, start, noise, np.arange(len(noise)) % classes, dtype, looked_at)
    if channels not in datasets.MODES:
        report.left_out = f"training is left out: the network takes {channels} channels, the data set has 1 or 3"
        return report
    if not steps:
        return report

    data = data or datasets.load()
    size, batch = _training_size(spec, size)
    batches = [datasets.batch(len(data.x_train), batch, step) for step in range(steps)]
    _load(packages, nets, state)
    if rate is None:
        first = images(batches[0], size), data.y_train[batches[0]] % classes
        rate = first_rate(engines[0].loss(*first), engines[0].gradients(*first))
        _load(packages, nets, state)
    control = packages[0].build(spec, dtype=dtype)
    packages[0].load(control, one_rounding_apart(packages[0].state(nets[0]), dtype))
    optimizer = {"name": "sgd", "learning_rate": rate, "momentum": MOMENTUM}
    control = packages[0].Engine(control, optimizer)
    engines = [package.Engine(net, optimizer) for package, net in zip(packages, nets, strict=True)]
    for number, indices in enumerate(batches, start=1):
        say(f"training, step {number} of {steps}")
        first, second, other = (e.step(images(indices, size), data.y_train[indices] % classes)[0] for e in (*engines, control))
        report.steps.append(Step((first, second), relative(first, second), relative(first, other)))
    report.weights = states(engines)
    say("testing")
    tested = min(16 * batch, len(data.x_test), 1000)
    test_images = datasets.prepare(data.x_test[:tested], channels, size, precision)
    predictions = [_classes(engine, test_images, batch) for engine in engines]
    report.accuracy = tuple(float(np.mean(p == data.y_test[:tested] % classes)) for p in predictions)
    report.same_predictions = bool(np.array_equal(*predictions))
    report.training = {"size": size, "batch": batch, "learning_rate": rate, "momentum": MOMENTUM}
    report.training |= {"tested": tested, "labels_wrapped": bool(max(data.y_train.max(), data.y_test.max()) >= classes)}
    return report


def _load(packages, nets, state):
    for package, net in zip(packages, nets, strict=True):
        package.load(net, state)


def small(spec, size):
    """The size, (height, width), or 64x64 pixels where that is less and the network takes it."""
    if min(size) > 64:
        try:
            shapes.layers(spec, (64, 64))
            return 64, 64
        except Error:
            pass
    return size


def _training_size(spec, size):
    """The size of the images to train on, and how many make a batch."""
    size = small(spec, size)
    cost = sum(row.macs for row in shapes.layers(spec, size))
    return size, int(np.clip(1e9 // max(cost, 1), 8, 64))


def _classes(engine, images, batch):
    return np.concatenate([engine.predict(images[i : i + batch]).argmax(1) for i in range(0, len(images), batch)])
