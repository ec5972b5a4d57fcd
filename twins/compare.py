"""One network in two or three frameworks, compared rung by rung up the ladder of parity. The first is the reference."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from shared import images, networks, shapes
from shared.checks import Error, in_words
from shared.data import Data
from shared.spec import Spec
from shared.weights import State, initial, randomised

from . import batches, datasets, ladder, predict
from .backends import Engine, Package
from .ladder import TOLERANCES, Difference, relative

MOMENTUM = 0.9  # of the training
CEILING = 1e-6  # above this, the tolerance of a network that magnifies rounding says little


class Step(NamedTuple):
    """One step of training: the losses, the largest relative difference, and the first engine's from its control."""

    losses: tuple[float, ...]
    difference: float
    control: float
    farthest: int = 1  # as that of `ladder.Difference`


@dataclass
class Report:
    """What `run` measured."""

    network: str
    dtype: str
    frameworks: tuple[str, ...]
    size: tuple[int, int]
    parameters: tuple[int, ...]  # by arithmetic, and in the networks
    activations: list[Difference]
    gradients: list[Difference] = field(default_factory=list)
    statistics: list[Difference] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    weights: list[Difference] = field(default_factory=list)
    chaos: dict[str, float] = field(default_factory=dict)  # as `ladder.chaos` measures it, if a rung exceeds its tolerance
    training: dict[str, Any] = field(default_factory=dict)  # data, size, batch, learning rate, images tested
    accuracy: tuple[float, ...] | None = None
    same_predictions: bool | None = None
    left_out: str = ""  # what could not be compared, and why

    @property
    def judged_steps(self) -> int:
        """The number of steps before the run turns chaotic: those that a tolerance can hold for.

        A run is chaotic once the first framework, started again from weights one rounding apart, departs from itself by a
        thousandth of the tolerance: it magnifies the smallest difference, and another framework rounds differently in thousands
        of places.
        """
        limit = TOLERANCES[self.dtype].get("losses", np.inf) / 1000
        return next((i for i, step in enumerate(self.steps) if step.control > limit), len(self.steps))

    @property
    def tolerances(self) -> dict[str, float]:
        """{rung: tolerance}: the ladder's, or ten times how far the first framework departs from itself, if that is more."""
        return {rung: max(tolerance, 10 * self.chaos.get(rung, 0)) for rung, tolerance in TOLERANCES[self.dtype].items()}

    @property
    def first_diverging_layer(self) -> str | None:
        """The name of the first layer whose output exceeds the tolerance, or None."""
        tolerances = self.tolerances
        first = ladder.first_beyond(self.activations, tolerances.get("activations", tolerances.get("logits", np.inf)))
        return first.name if first else None

    @property
    def broken(self) -> list[str]:
        """A line for each tolerance of the ladder that is exceeded."""
        lines = []
        if len(set(self.parameters)) > 1:
            expected, *counts = (f"{count:,}" for count in self.parameters)
            lines.append(f"parameters: {expected} by arithmetic, {in_words(counts)} in the networks")
        ended = next((number for number, step in enumerate(self.steps, start=1) if not np.isfinite(step.losses).all()), None)
        if ended:
            lines.append(f"losses: the loss is NaN or infinite at step {ended}; try a smaller learning rate")
        rungs = self._judged()
        for rung, tolerance in self.tolerances.items():
            first = ladder.first_beyond(rungs[rung], tolerance)
            if not first:
                continue
            by = f"by {first.value:.1e}{self.place(first)}; the tolerance is {tolerance:g}"
            lines.append(
                f"logits: they differ {by}" if rung == "logits" else f"{rung}: {first.name} is the first to diverge, {by}"
            )
        whole_run = self.judged_steps == len(self.steps)
        if whole_run and self.same_predictions is False and "losses" in self.tolerances:
            lines.append("predictions: the trained networks predict different classes")
        return lines

    def place(self, difference: Difference | Step) -> str:
        """ " in FRAMEWORK" that is so far from the first, where there are several others; else nothing."""
        return f" in {self.frameworks[difference.farthest]}" if len(self.frameworks) > 2 else ""

    def _judged(self) -> dict[str, list[Difference]]:
        """{rung: the differences that its tolerance must hold for}."""
        steps = enumerate(self.steps[: self.judged_steps], start=1)
        return {
            "activations": self.activations,
            "gradients": self.gradients,
            "statistics": self.statistics,
            "logits": self.activations[-1:],
            "losses": [Difference(f"step {number}", (), step.difference, step.farthest) for number, step in steps],
            "weights": self.weights if self.judged_steps == len(self.steps) else [],
        }


class _Setup(NamedTuple):
    """What is compared."""

    packages: list[Package]  # `torch_impl` and `keras_impl`, on one backend or two
    spec: Spec
    state: State  # what training starts from
    start: State  # what rungs 2 to 4 are measured with
    dtype: str  # of the networks
    size: tuple[int, int]  # of the images

    @property
    def precision(self) -> str:
        """The precision of the images."""
        return "float64" if self.dtype == "float64" else "float32"


def run(
    packages: list[Package],
    spec: Spec,
    weights: State | None = None,
    image: np.ndarray | None = None,
    data: Data | None = None,
    size: tuple[int, int] | None = None,
    dtype: str = "float64",
    steps: int = 20,
    rate: float | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> Report:
    """Climb the ladder with a network in several packages, such as `torch_impl` and `keras_impl`.

    `weights` is a state for all, or None: then rungs 2 to 4 have the initial weights with randomised batch norms, and
    training starts from the initial weights. Rungs 2 to 4 are measured on white noise, rung 2 on `image`, (height, width,
    channels), if there is one. Training is on `data`, by default the digits; labels beyond the network's classes wrap around.
    `size` is (height, width), the spec's by default; `rate` the learning rate, by default `ladder.first_rate`; `say` is called
    with what is being done.
    """
    rows = shapes.layers(spec, size)
    channels, height, width = spec["input"]
    state = initial(spec) if weights is None else weights
    if not state:
        raise Error(f"{spec['name']} has no weights, so there is nothing to compare")
    setup = _Setup(packages, spec, state, randomised(state) if weights is None else state, dtype, size or (height, width))
    say("building the networks")
    nets = [package.build(spec, dtype=dtype) for package in packages]
    _load(packages, nets, setup.start)
    engines = [package.Engine(net) for package, net in zip(packages, nets, strict=True)]
    report = _rungs_two_to_four(setup, engines, rows, image, say)
    if report.left_out:
        return report
    if channels not in images.MODES:
        report.left_out = f"training is left out: the network takes {channels} channels, the data set has 1 or 3"
    elif steps:
        _rung_five(setup, engines, data or datasets.load_data(), steps, rate, report, say)
    return report


def _rungs_two_to_four(
    setup: _Setup, engines: list[Engine], rows: list[shapes.Row], image: np.ndarray | None, say: Callable[[str], None]
) -> Report:
    """A report with everything but the training."""
    spec, size = setup.spec, setup.size
    say("activations")
    # White noise: in a smooth picture all positions are alike, and batch norms, which remove what is alike, leave rounding.
    noise = np.random.default_rng(0).standard_normal((4, spec["input"][0], *size)).astype(setup.precision)
    viewed = noise
    if image is not None:
        viewed = images.preprocess([image], networks.with_size(spec, size), setup.precision)
    trainable = {name for row in rows for name in row.trainable}
    counts = [sum(array.size for name, array in engine.state().items() if name in trainable) for engine in engines]
    report = Report(
        network=spec["name"],
        dtype=setup.dtype,
        frameworks=tuple(engine.framework for engine in engines),
        size=size,
        parameters=(shapes.parameters(rows), *counts),
        activations=ladder.activations(engines, viewed),
    )
    if len(rows[-1].shape) > 1 and not networks.is_dense(spec):
        report.left_out = "gradients and training are left out: the network ends in a map, not in a vector of logits"
        return report
    say("gradients")
    labels = _of_pixels(np.arange(len(noise)) % rows[-1].shape[0], rows[-1].shape)
    report.gradients = ladder.gradients(engines, noise, labels)
    report.statistics = ladder.statistics(engines)
    tolerances = TOLERANCES[setup.dtype]
    rungs = [rung for rung in ("activations", "gradients", "statistics") if rung in tolerances]
    if any(ladder.first_beyond(getattr(report, rung), tolerances[rung]) for rung in rungs):
        say(f"how far {engines[0].framework} departs from itself")
        report.chaos = ladder.chaos(setup.packages[0], spec, setup.start, noise, labels, setup.dtype, viewed)
    return report


def _rung_five(
    setup: _Setup, engines: list[Engine], data: Data, steps: int, rate: float | None, report: Report, say: Callable[[str], None]
) -> None:
    """Add the training to a report: losses, weights, predictions."""
    packages, spec, state = setup.packages, setup.spec, setup.state
    size, count = _training_size(spec, setup.size)
    channels, output = spec["input"][0], shapes.layers(spec, size)[-1].shape
    classes = output[0]
    batches.check_normalises(spec, size, min(count, len(data.x_train)))

    def batch(step: int) -> tuple[np.ndarray, np.ndarray]:
        chosen = batches.indices(len(data.x_train), count, step)
        x = images.prepare(data.x_train[chosen], channels, size, setup.precision)
        return x, _of_pixels(data.y_train[chosen] % classes, output)

    nets = [engine.net for engine in engines]
    _load(packages, nets, state)
    if rate is None:
        rate = ladder.first_rate(engines[0].loss(*batch(0)), engines[0].gradients(*batch(0)))
        _load(packages, nets, state)
    control = packages[0].build(spec, dtype=setup.dtype)
    packages[0].load(control, ladder.one_rounding_apart(packages[0].state(nets[0]), setup.dtype))
    optimizer = {"name": "sgd", "learning_rate": rate, "momentum": MOMENTUM}
    control = packages[0].Engine(control, optimizer)
    engines = [package.Engine(net, optimizer) for package, net in zip(packages, nets, strict=True)]
    for step in range(steps):
        say(f"training, step {step + 1} of {steps}")
        *losses, other = (engine.step(*batch(step))[0] for engine in (*engines, control))
        difference, place = ladder.farthest(losses[0], losses[1:])
        report.steps.append(Step(tuple(losses), difference, relative(losses[0], other), place))
    report.weights = ladder.states(engines)
    say("testing")
    tested = min(16 * count, len(data.x_test), 1000)
    plain = {key: value for key, value in spec.items() if key != "preprocessing"} | {"input": [channels, *size]}
    predictions: list[list[int]] = [[] for _ in engines]
    for _, logits in predict.batched_logits(engines, plain, data.x_test[:tested], setup.precision):
        for classes_so_far, rows in zip(predictions, logits, strict=True):
            classes_so_far.extend(rows.argmax(1).tolist())
    labels = _of_pixels(data.y_test[:tested] % classes, output)
    report.accuracy = tuple(float(np.mean(p == labels)) for p in predictions)
    report.same_predictions = all(each == predictions[0] for each in predictions)
    report.training = {"size": size, "batch": count, "learning_rate": rate, "momentum": MOMENTUM}
    report.training |= {"tested": tested, "labels_wrapped": bool(max(data.y_train.max(), data.y_test.max()) >= classes)}


def _of_pixels(labels: np.ndarray, output: shapes.Shape) -> np.ndarray:
    """The labels of images for an output of that shape: where it is a map of logits, every pixel has its image's label."""
    return np.broadcast_to(labels.reshape(-1, *[1] * len(output[1:])), (len(labels), *output[1:])).copy()


def _load(packages: list[Package], nets: list[Any], state: State) -> None:
    for package, net in zip(packages, nets, strict=True):
        package.load(net, state)


def small_size(spec: Spec, size: tuple[int, int]) -> tuple[int, int]:
    """The size, (height, width), or 64x64 pixels if that is less and the network takes it."""
    if min(size) > 64:
        try:
            shapes.layers(spec, (64, 64))
            return 64, 64
        except Error:
            pass
    return size


def _training_size(spec: Spec, size: tuple[int, int]) -> tuple[tuple[int, int], int]:
    """The size of the images to train on, and how many make a batch."""
    size = small_size(spec, size)
    cost = sum(row.macs for row in shapes.layers(spec, size))
    return size, int(np.clip(1e9 // max(cost, 1), 8, 64))
