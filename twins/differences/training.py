"""Some steps of training in both networks, by the same loss and optimiser, and the first quantity that diverges.

All is done in float64 on recordings, which have weights of their own. The loss is the mean squared distance of the outputs
from random targets. The optimiser is SGD with momentum, in NumPy, so that what diverges is due to a network, or those of the
frameworks that are given. Dropout and other layers without weights run as in evaluation, since random masks are never alike.
A quantity diverges where it differs by more than the ladder's tolerance, or than ten times what A differs from itself when its
weights start one rounding apart.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np

from shared.checks import first_few, is_out_of_memory
from shared.operations import Operation, Recording

from .. import ladder
from . import blame, remedies
from .alignment import Alignment, Graph, Layout, Node, carried
from .blame import Finding
from .optimizers import SINGLE, Optimizer, differing

MOMENTUM = 0.9
LOSS, GRADIENTS, STATISTICS, UPDATE = "loss", "gradients", "running statistics", "update"  # in the order of a step
RUNGS = {LOSS: "losses", GRADIENTS: "gradients", STATISTICS: "statistics", UPDATE: "gradients"}  # of the ladder
FIT = 1e-6  # how well a running statistic must follow from the batch's for its momentum to be told
Key = tuple[str, str]  # (operation, role)


class Measure(NamedTuple):
    """How far one quantity of B's is from A's in a step.

    Fields:
        name: The frameworks' names of the weight or statistic, or "loss" twice.
        values: The two numbers that differ most, of A and of B, or the losses; None: B has none.
        tolerance: What rounding explains.
    """

    quantity: str
    step: int
    name: tuple[str, str]
    values: tuple[float | None, float | None]
    difference: float
    tolerance: float

    @property
    def sound(self) -> bool:
        """Whether the two agree."""
        return self.difference <= self.tolerance


@dataclass
class Training:
    """What some steps of training in both showed.

    Fields:
        steps: The number of steps asked for; the last that was taken is the first that diverged.
        rate: The learning rate, A's if the two have optimisers of their own.
        measures: Of each quantity the largest difference in any step, up to the one that diverged, which is the last.
        dropouts: The layers of A and of B that would drop or add something at random, and did not.
        notes: Why the comparison is not whole, in words.
        optimizers: Their names; none for SGD with a momentum of 0.9, which is then the same for both.
    """

    steps: int
    rate: float = 0.0
    measures: list[Measure] = field(default_factory=list)
    dropouts: tuple[list[str], list[str]] = ([], [])
    notes: list[str] = field(default_factory=list)
    optimizers: tuple[str, ...] = ()

    @property
    def divergence(self) -> Measure | None:
        """The first quantity that diverged, or None."""
        return next((measure for measure in self.measures if not measure.sound), None)


def train(
    aligned: Alignment, inputs: tuple[Sequence[np.ndarray], Sequence[np.ndarray]], steps: int, copy: bool,
    say: Callable[[str], None], optimizers: tuple[Optimizer, Optimizer] | None = None,
) -> tuple[Training, list[Finding], blame.Verdict]:  # fmt: skip
    """Train both recordings of an alignment, which are in training mode, on their `inputs`.

    With `copy`, B starts with A's weights. With `optimizers`, each moves the weights of its own. Gives what was measured, what
    differs in training, and how each operation was judged in training mode.
    """
    a, b = aligned.a.recording, aligned.b.recording
    values = a.values(inputs[0])
    verdict = blame.judge(aligned, values, copy)
    training = Training(steps, dropouts=([name for name, _ in a.dropouts], [name for name, _ in b.dropouts]))
    modes = _modes(verdict)
    judged = {pair for finding in modes for pair in (finding.operations, *finding.others)}
    findings = [*modes, *(each for each in _frozen(aligned) if each.operations not in judged), *_rates(a, b)]
    if a.random or b.random:
        drawn = ", ".join(dict.fromkeys([*a.random, *b.random]))
        training.notes.append(f"random numbers are drawn in {drawn}: no two runs are the same, so no step was compared")
        return training, blame.grouped(findings), verdict
    if copy:
        b.load(verdict.weights)
    values = {name: values[name] for name in {*a.outputs, *_normalised(aligned.a)}}  # the others are large
    outputs = _outputs(aligned, values, b.values(inputs[1], b.outputs))
    if outputs is None:
        training.notes.append("the results have different shapes: there is no loss to compare")
        return training, blame.grouped(findings), verdict
    fewer = len(outputs)
    if not fewer == len(a.outputs) == len(b.outputs):
        training.notes.append(f"A returns {len(a.outputs)} results and B {len(b.outputs)}: the loss uses the first {fewer}")
    say("training both")
    least = 0.0
    if optimizers:
        training.optimizers = tuple(f"{each.kind.__name__}" for each in optimizers)
        least = 0.0 if optimizers[0].framework == optimizers[1].framework else SINGLE
    loosest = max((judgement.tolerance for judgement in verdict.judgements if judgement.sound), default=0.0)
    try:
        findings += _Steps(aligned, inputs, outputs, values, max(least, 1e3 * loosest), optimizers).run(training, say)
    except Exception as error:  # whatever a framework raises for what has no gradient
        if is_out_of_memory(error):
            raise
        line = next(iter(f"{error}".strip().splitlines()), type(error).__name__)
        training.notes.append(f"no step can be taken: {line[:200]}")
    divergence = training.divergence
    if training.measures and not (divergence and divergence.quantity == LOSS):
        blame.excuse(verdict)
    if divergence and divergence.quantity != STATISTICS:  # a gradient that is stopped where there is none matters to none
        findings += _stops(aligned)
    if divergence and not _explained(divergence, findings, verdict):
        findings.append(_unnamed(aligned, divergence))
    return training, blame.grouped(findings), verdict


def _explained(divergence: Measure, findings: Sequence[Finding], verdict: blame.Verdict) -> bool:
    """Whether something that was found can be why a quantity diverges."""
    told = {finding.attribute.partition(" ")[0] for finding in findings}
    if divergence.quantity == STATISTICS:
        return bool(told & {"momentum", "running"})
    if divergence.quantity == UPDATE:
        return any(finding.kind == "optimizer" for finding in findings)
    return bool(verdict.findings or told & {"training", "gradient", "trainable"})


def _modes(verdict: blame.Verdict) -> list[Finding]:
    """Batch norms that run in training mode in one network alone; these are then no fault of the forward pass."""
    found = [finding for finding in verdict.findings if finding.attribute == "training"]
    verdict.findings = [finding for finding in verdict.findings if finding.attribute != "training"]
    return found


def _rates(a: Recording, b: Recording) -> list[Finding]:
    """Rates of dropout that differ, in the order of the layers."""
    if [rate for _, rate in a.dropouts] == [rate for _, rate in b.dropouts]:
        return []
    length = max(len(a.dropouts), len(b.dropouts))
    sides = [[*each.dropouts, *[(None, 0.0)] * (length - len(each.dropouts))] for each in (a, b)]
    one, two = next((one, two) for one, two in zip(*sides, strict=True) if one[1] != two[1])
    rates = tuple([rate for _, rate in each.dropouts] or "none" for each in (a, b))
    finding = Finding((one[0], two[0]), "dropout", "rate", (rates[0], rates[1]), math.nan)
    return [_with_remedy(finding, b.framework)]


def _frozen(aligned: Alignment) -> list[Finding]:
    """Weights that the optimiser moves in one network alone."""
    found = []
    for a, b in aligned.pairs:
        roles = [role for role in a.weights if role in b.weights and role not in ("mean", "variance")]
        trained = [(aligned.a.recording.trains(*a.weights[r]), aligned.b.recording.trains(*b.weights[r])) for r in roles]
        for moved in (True, False):
            frozen = [role for role, pair in zip(roles, trained, strict=True) if pair == (moved, not moved)]
            if frozen:
                values = ("trained", "frozen") if moved else ("frozen", "trained")
                names = "" if len(frozen) == len(roles) else f" {' and '.join(frozen)}"
                found.append(_between(aligned, a, b, f"trainable{names}", values))
    return found


def _stops(aligned: Alignment) -> list[Finding]:
    """Places where one network alone stops the gradient."""
    sides: list[dict[str, Operation]] = []
    for graph in (aligned.a, aligned.b):
        stops = [operation for operation in graph.recording.operations if operation.kind == "stop_gradient"]
        sides.append({graph.roots[operation.inputs[0]].name: operation for operation in stops})
    found = []
    for before, stop in sides[1].items():
        partner = aligned.back.get(before)
        if partner not in sides[0]:
            found.append(_stop(aligned, (partner, stop.name), ("passed on", "stopped"), ("", stop.source)))
    for before, stop in sides[0].items():
        partner = aligned.partner.get(before)
        if partner not in sides[1]:
            found.append(_stop(aligned, (stop.name, partner), ("stopped", "passed on"), (stop.source, "")))
    return found


def _stop(
    aligned: Alignment, operations: tuple[str | None, str | None], values: tuple[str, str], sources: tuple[str, str]
) -> Finding:
    places = (blame.readable(sources[0]), blame.readable(sources[1]))
    finding = Finding(operations, "stop_gradient", "gradient", values, math.nan, places)
    return _with_remedy(finding, aligned.b.recording.framework)


def _between(
    aligned: Alignment, a: Node, b: Node, attribute: str, values: tuple[Any, Any], difference: float = math.nan
) -> Finding:
    sources = (blame.readable(a.source), blame.readable(b.source))
    finding = Finding((a.name, b.name), b.kind, attribute, values, difference, sources)
    return _with_remedy(finding, aligned.b.recording.framework)


def _with_remedy(finding: Finding, framework: str) -> Finding:
    remedy, trap = remedies.of(finding.kind, finding.attribute, finding.values, framework)
    return replace(finding, remedy=remedy, trap=trap)


def _unnamed(aligned: Alignment, divergence: Measure) -> Finding:
    """The first weight to diverge, where nothing that is known explains it."""
    for a, b in aligned.pairs:
        for role in a.weights:
            if role in b.weights and aligned.a.weights_name(a, role) == divergence.name[0]:
                values = tuple("none" if value is None else f"{value:.6g}" for value in divergence.values)
                return _between(
                    aligned, a, b, f"{divergence.quantity} of the {role}", (values[0], values[1]), divergence.difference
                )
    return Finding((None, None), "training", divergence.quantity, divergence.values, divergence.difference)


class _Output(NamedTuple):
    """An output of A's and the one of B's that it is, how it lies there, and what it should be."""

    a: str
    b: str
    layout: Layout
    target: np.ndarray


def _outputs(aligned: Alignment, ours: Mapping[str, np.ndarray], theirs: Mapping[str, np.ndarray]) -> list[_Output] | None:
    """The outputs that both have, with targets as far from A's values as these are from one another; None if shapes differ."""
    random, found = np.random.default_rng(0), []
    for one, two in zip(aligned.a.outputs, aligned.b.outputs, strict=False):
        layout = aligned.operand(aligned.a.roots[one], aligned.b.roots[two])
        if carried(ours[one], layout).shape != theirs[two].shape:
            return None
        target = ours[one] + (float(np.std(ours[one])) or 1.0) * random.standard_normal(ours[one].shape)
        found.append(_Output(one, two, layout, target))
    return found


@dataclass
class _Passed:
    """What one step gave, before the weights move."""

    outputs: dict[str, np.ndarray]
    loss: float
    gradients: dict[Key, np.ndarray]
    statistics: dict[Key, np.ndarray]
    update: dict[Key, np.ndarray] = field(default_factory=dict)


class _Trainee:
    """A recording in training. Several may share one: each puts its own weights there before it runs.

    Only the weights `keys`, those with a partner, move: what the other does not have is a finding already, and there are
    operations, as those of an LSTM in Keras, whose weights no recording tells.
    """

    def __init__(
        self, recording: Recording, inputs: Sequence[np.ndarray], targets: Mapping[str, np.ndarray], keys: Sequence[Key],
        optimizer: Optimizer | None,
    ) -> None:  # fmt: skip
        self.optimizer = optimizer
        self.recording, self.inputs, self.targets, self.keys = recording, inputs, targets, keys
        self.weights = {key: np.array(recording.weight(*key)) for key in keys if recording.trains(*key)}
        self.computed = {key for key in keys if recording.trains(*key) is None}
        self.running = {key: np.array(recording.weight(*key)) for key in keys if key[1] in ("mean", "variance")}
        self.velocity = {key: np.zeros_like(array) for key, array in self.weights.items()}
        self.start, self.history = dict(self.weights), list[dict[Key, np.ndarray]]()  # what an optimiser of a framework takes

    def one_rounding_apart(self) -> "_Trainee":
        """The same with weights and inputs one rounding apart."""
        other = _Trainee(self.recording, self.inputs, self.targets, self.keys, self.optimizer)
        other.weights = {key: _nudged(array) for key, array in self.weights.items()}
        other.start = dict(other.weights)
        other.inputs = [_nudged(array) if array.dtype.kind == "f" else array for array in self.inputs]
        return other

    def forward(self) -> _Passed:
        """Outputs, loss, gradients of the trained weights, and running statistics after the pass."""
        recording = self.recording
        recording.load(self.weights | self.running)
        values = recording.values(self.inputs, recording.outputs)
        errors = [values[n] - self.targets[n] if n in self.targets else np.zeros_like(values[n]) for n in recording.outputs]
        of_weights, _ = recording.gradients(self.inputs, [error / error.size for error in errors])
        trained = {key: gradient for key, gradient in of_weights.items() if key in self.weights or key in self.computed}
        loss = sum(float(np.mean(np.square(error))) / 2 for error in errors)
        outputs = {name: values[name] for name in self.targets}
        return _Passed(outputs, loss, trained, recording.statistics(self.inputs))

    def move(self, passed: _Passed, rate: float) -> None:
        """Let the optimiser move the weights: without one, SGD with momentum, v ← 0.9·v + g, w ← w − rate·v."""
        moved = {key: gradient for key, gradient in passed.gradients.items() if key in self.weights}
        if self.optimizer:
            self.history.append(moved)
            weights = [self.start[key] for key in moved]
            after = self.optimizer.steps(weights, [[each[key] for key in moved] for each in self.history])
            passed.update |= {key: array - self.weights[key] for key, array in zip(moved, after, strict=True)}
            self.weights |= dict(zip(moved, after, strict=True))
            moved = {}
        for key, gradient in moved.items():
            self.velocity[key] = MOMENTUM * self.velocity[key] + gradient
            passed.update[key] = -rate * self.velocity[key]
            self.weights[key] = self.weights[key] + passed.update[key]
        self.running |= passed.statistics


def _nudged(array: np.ndarray) -> np.ndarray:
    return ladder.one_rounding_apart({"": array}, "float64")[""]


class _Pair(NamedTuple):
    """One weight or statistic of both, by (operation, role) in each recording."""

    a: Key
    b: Key
    names: tuple[str, str]
    positions: np.ndarray  # in A's array, of each element of B's


class _Steps:
    """Both networks, and A from weights one rounding apart, in step; `least` is the least tolerance, for inexact operations."""

    def __init__(
        self, aligned: Alignment, inputs: tuple[Sequence[np.ndarray], Sequence[np.ndarray]], outputs: list[_Output],
        values: Mapping[str, np.ndarray], least: float, optimizers: tuple[Optimizer, Optimizer] | None,
    ) -> None:  # fmt: skip
        self.optimizers = optimizers
        self.aligned, self.outputs, self.values, self.least = aligned, outputs, values, least
        ours = {output.a: output.target for output in outputs}
        theirs = {output.b: carried(output.target, output.layout) for output in outputs}
        self.pairs = list(self._paired())
        one, two = optimizers or (None, None)
        self.a = _Trainee(aligned.a.recording, inputs[0], ours, [pair.a for pair in self.pairs], one)
        self.b = _Trainee(aligned.b.recording, inputs[1], theirs, [pair.b for pair in self.pairs], two)
        self.control = self.a.one_rounding_apart()

    def _paired(self) -> Iterator[_Pair]:
        aligned = self.aligned
        for a, b in aligned.pairs:
            places = blame.copied(
                aligned, a, b, aligned.of_operands(a, b), lambda array: np.arange(array.size).reshape(array.shape)
            )
            for role, positions in places.items():
                names = aligned.a.weights_name(a, role), aligned.b.weights_name(b, role)
                yield _Pair(a.weights[role], b.weights[role], names, positions.ravel())

    def run(self, training: Training, say: Callable[[str], None]) -> list[Finding]:
        """Take the steps, up to the one that diverges, and note what is measured; what differs in the running statistics."""
        found: list[Finding] = []
        largest: dict[str, Measure] = {}
        for step in range(1, training.steps + 1):
            say(f"training both, step {step}")
            trainees = self.a, self.control, self.b
            before = self.a.running, self.b.running
            passed = [trainee.forward() for trainee in trainees]
            if step == 1:
                kept = [*self.a.computed, *self.b.computed]
                if kept:
                    training.notes.append(f"values computed from weights stay as they are: {first_few([n for n, _ in kept])}")
                named = {"/".join(key): gradient for key, gradient in passed[0].gradients.items()}
                training.rate = self.optimizers[0].rate if self.optimizers else ladder.first_rate(passed[0].loss, named)
                found = self._momenta(before, (passed[0].statistics, passed[2].statistics))
            for trainee, each in zip(trainees, passed, strict=True):
                trainee.move(each, training.rate)
            for measure in self._measured(step, passed):
                known = largest.get(measure.quantity)
                if not measure.sound or known is None or known.difference < measure.difference:
                    largest[measure.quantity] = measure
                if not measure.sound:
                    break
            training.measures = list(largest.values())
            if training.divergence:
                training.measures = [each for each in training.measures if each.sound] + [training.divergence]
                break
        if self.optimizers and self.a.history:
            weights = [self.a.start[key] for key in self.a.history[0]]
            found += differing(*self.optimizers, weights, [list(each.values()) for each in self.a.history])
        return found

    def _measured(self, step: int, passed: Sequence[_Passed]) -> Iterator[Measure]:
        """The quantities of a step, in their order: gradients from the output back, all others as they run."""
        ours, control, theirs = passed
        yield self._loss(step, ours, control, theirs)
        for quantity, arrays in ((GRADIENTS, "gradients"), (STATISTICS, "statistics"), (UPDATE, "update")):
            sides = [getattr(each, arrays) for each in passed]
            for pair in reversed(self.pairs) if quantity == GRADIENTS else self.pairs:
                if pair.a in sides[0] or pair.b in sides[2]:
                    yield self._measure(quantity, step, pair, sides)

    def _loss(self, step: int, ours: _Passed, control: _Passed, theirs: _Passed) -> Measure:
        """The outputs and the loss, whichever differ more."""
        apart = [0.0, 0.0]
        for output in self.outputs:
            one, near, two = ours.outputs[output.a], control.outputs[output.a], theirs.outputs[output.b]
            apart = [
                max(apart[0], ladder.relative(carried(one, output.layout), two)),
                max(apart[1], ladder.relative(one, near)),
            ]
        difference = max(apart[0], ladder.relative(ours.loss, theirs.loss))
        tolerance = max(
            self.least, ladder.TOLERANCES["float64"][RUNGS[LOSS]], 10 * apart[1], 10 * ladder.relative(ours.loss, control.loss)
        )
        return Measure(LOSS, step, ("loss", "loss"), (ours.loss, theirs.loss), difference, tolerance)

    def _measure(self, quantity: str, step: int, pair: _Pair, sides: Sequence[Mapping[Key, np.ndarray]]) -> Measure:
        one, near, two = sides[0].get(pair.a), sides[1].get(pair.a), sides[2].get(pair.b)
        tolerance = max(self.least, ladder.TOLERANCES["float64"][RUNGS[quantity]])
        if one is None or two is None:
            some = one if one is not None else two
            assert some is not None
            size = float(np.linalg.norm(some))
            values = (None if one is None else size, None if two is None else size)
            return Measure(quantity, step, pair.names, values, math.inf if _matters(one, near) else 0.0, tolerance)
        assert near is not None
        laid, theirs = one.ravel()[pair.positions], two.ravel()
        at = int(np.argmax(np.abs(laid - theirs)))
        tolerance = max(tolerance, 10 * ladder.relative(one, near))
        values = (float(laid[at]), float(theirs[at]))
        return Measure(quantity, step, pair.names, values, ladder.relative(laid, theirs), tolerance)

    def _momenta(
        self, before: Sequence[Mapping[Key, np.ndarray]], after: Sequence[Mapping[Key, np.ndarray]]
    ) -> list[Finding]:  # fmt: skip
        """Batch norms whose running statistics follow the batch in another way, each measured on what it was given."""
        found = []
        theirs = self.aligned.b.recording.values(self.b.inputs, _normalised(self.aligned.b))
        for a, b in self.aligned.pairs:
            if not all(node.kind == "normalization" and {"mean", "variance"} <= set(node.weights) for node in (a, b)):
                continue
            fits = [
                _follows(node, values, old, new)
                for node, values, old, new in ((a, self.values, before[0], after[0]), (b, theirs, before[1], after[1]))
            ]
            if None in fits:
                continue
            one, two = fits
            assert one and two
            if not math.isclose(one.share, two.share, rel_tol=1e-6):
                found.append(_between(self.aligned, a, b, "momentum", (_rounded(one.share), _rounded(two.share))))
            elif not math.isclose(one.factor, two.factor, rel_tol=1e-6):
                found.append(_between(self.aligned, a, b, "running variance", (one.words, two.words)))
        return found


class _Follows(NamedTuple):
    """How running statistics follow a batch: its share, and the factor on its biased variance."""

    share: float
    factor: float
    number: int  # of values a channel

    @property
    def words(self) -> str:
        """The factor in words."""
        if math.isclose(self.factor, 1, rel_tol=1e-9):
            return "biased"
        if math.isclose(self.factor, self.number / (self.number - 1), rel_tol=1e-6):
            return f"unbiased, n/(n - 1) = {self.factor:.6g}"
        return f"{self.factor:.6g} times the biased one"


def _matters(one: np.ndarray | None, near: np.ndarray | None) -> bool:
    """Whether a gradient that B lacks is more than rounding noise in A, as that of a bias before a batch norm is."""
    return one is None or near is None or ladder.relative(one, near) < 1e-3


def _follows(
    node: Node, values: Mapping[str, np.ndarray], before: Mapping[Key, np.ndarray], after: Mapping[Key, np.ndarray]
) -> _Follows | None:
    """What explains the statistics after a batch by those before, or None."""
    attributes, x = node.attributes, values[_input_of(node)]
    axes = tuple(axis for axis in range(x.ndim) if axis != attributes["channels"] % x.ndim)
    count = math.prod(x.shape[axis] for axis in axes)
    keys = node.weights["mean"], node.weights["variance"]
    if count < 2 or not all(key in before and key in after for key in keys):
        return None
    (old_mean, old), (new_mean, new) = ([side[key] for key in keys] for side in (before, after))
    way, moved = x.mean(axes) - old_mean, new_mean - old_mean
    if not np.any(way):
        return None
    share = float(way @ moved / (way @ way))
    variance = x.var(axes)
    if not share or ladder.relative(way * share, moved) > FIT or not np.any(variance):
        return None
    added = (new - (1 - share) * old) / share
    factor = float(variance @ added / (variance @ variance))
    return _Follows(share, factor, count) if ladder.relative(added, factor * variance) <= FIT else None


def _input_of(node: Node) -> str:
    """What a batch norm takes."""
    return next(each for each in node.members if each.name == node.weights["mean"][0]).inputs[0]


def _normalised(graph: Graph) -> list[str]:
    """What the operations with running statistics take."""
    return [_input_of(node) for node in graph.nodes.values() if "mean" in node.weights]


def _rounded(number: float) -> float:
    return float(f"{number:.6g}")


def in_words(training: Training) -> list[str]:
    """What the steps showed, a sentence a line."""
    lines = []
    dropped = [*training.dropouts[0], *training.dropouts[1]]
    if dropped:
        lines.append(f"Random in training, compared as in evaluation: {first_few(dropped)}.")
    lines += [f"Training: {note}." for note in training.notes]
    divergence, done = training.divergence, max((measure.step for measure in training.measures), default=0)
    if not done:
        return lines
    taken = f"SGD (momentum {MOMENTUM}, rate {training.rate:.2g})"
    if training.optimizers:
        taken = " and ".join(dict.fromkeys(training.optimizers))
    count = f"{done} step{'s' * (done > 1)} of {taken}"
    sound = ", ".join(f"{each.quantity} {each.difference:.1e}" for each in training.measures if each.sound)
    if not divergence:
        return [*lines, f"Training agrees: {count}.", f"   apart by: {sound}"]
    lines.append(f"Training diverges at step {done}: {divergence.quantity}")
    for side, name, value in zip("AB", divergence.name, divergence.values, strict=True):
        lines.append(f"   {side}  {name}: {'none' if value is None else f'{value:.9g}'}")
    size = [f"differs by {divergence.difference:.1e}"] if math.isfinite(divergence.difference) else []
    return [*lines, f"   {'; '.join([*size, *([f'until then: {sound}'] if sound else [])])}"] if size or sound else lines
