"""Any two networks side by side: which operations differ, how, and what would fix it."""

import contextlib
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from shared.checks import Error, is_out_of_memory
from shared.operations import Recording

from .. import backends
from . import alignment, blame
from . import training as steps
from .alignment import Alignment, Layout
from .blame import Finding
from .optimizers import Optimizer
from .optimizers import read as read_optimizer

AGREED = 1e-9  # results of two networks that are no further apart are the same
MOST_STEPS = 100  # of training
BATCH = 2  # images to judge on
LARGEST_BATCH_VALUE = 1e8  # numbers of one input


@dataclass
class Comparison:
    """What `diff` found.

    Fields:
        names, frameworks: Of A and B.
        pairs: How far each of B's operations is from A's on A's inputs, in the order of A's.
        findings: The faults, in the order in which B runs.
        training: What differs in training alone: of attributes, and with `train` of what was measured too.
        trained: What the steps of training showed; None without any.
        notes: What a reader should know of the recordings, in words.
        only: The operations of A and of B without a partner.
        harmless: Those of them that change nothing.
        outputs: How far the results of the networks are apart; None where they have other shapes, or are random.
        copied: The number of A's weights that B was judged with; 0 for its own.
        map: Which of A's weights each of B's is: dicts with from, to, role, and rows where those of a kernel are permuted.
        certain: Whether the alignment can be relied on. If not, no operation is blamed.
        random: The operations of A and of B that draw random numbers. If there are any, whether the two are the same is open.
        uncopied: B's operations that could not get A's weights, since these cannot be matched. With any, it is open too.
    """

    names: tuple[str, str]
    frameworks: tuple[str, str]
    pairs: list[blame.Judgement]
    findings: list[Finding]
    training: list[Finding]
    only: tuple[list[str], list[str]]
    harmless: list[str]
    outputs: float | None
    copied: int
    map: list[dict[str, Any]]
    certain: bool
    random: tuple[list[str], list[str]] = field(default_factory=lambda: ([], []))
    uncopied: list[str] = field(default_factory=list)
    trained: steps.Training | None = None
    notes: list[str] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)  # of both graphs beside one another, for the page

    @property
    def same(self) -> bool:
        """Whether the two are the same function."""
        return self.certain and not self.findings and not any(self.random) and not self.uncopied

    @property
    def sound(self) -> bool:
        """Whether they are the same function and, if they were to be trained, were seen to train alike."""
        trained = self.trained
        return self.same and (trained is None or bool(trained.measures and not trained.divergence and not self.training))

    @property
    def in_words(self) -> str:
        """The verdict, in a sentence."""
        if not self.certain:
            return "Most operations have no partner: the two are too different to say which is at fault."
        results = "have different shapes" if self.outputs is None else f"differ by {self.outputs:.1e}"
        results = "are random" if any(self.random) else results
        if self.same:
            return f"The same function: the results {results}."
        count = len(self.findings)
        if not count:
            return f"It cannot be determined whether they are the same function: the results {results}."
        return f"Not the same function: {count} finding{'s' * (count > 1)}; the results {results}."


def diff(
    a: Any,
    b: Any,
    input: Any = None,
    weights: str = "copy",
    names: tuple[str, str] = ("A", "B"),
    train: int = 0,
    optimizers: tuple[Any, Any] | None = None,
    same_axes: bool = False,
    say: Callable[[str], None] = lambda text: None,
) -> Comparison:
    """Compare two networks, PyTorch modules or Keras models, operation by operation.

    `input` is an array, channels first, with its batch, or a shape without one, as (3, 224, 224): white noise then; a list of
    these for networks that take several, of a Keras model that takes them by name in the order of the alphabet. Arrays of int32
    and int64 stay whole numbers. By default it is the input that a Keras model declares. Keras models get the channels last,
    unless `same_axes`: then both get them as they are. With `weights="copy"`, B is judged with A's weights, and has its own
    again afterwards; with "own", both as they are. With `train`, both then take as many steps of the same optimiser: see
    `twins.differences.training`. `say` is called with what is being done.
    Raises `shared.Error` for what is not a network, for networks that do not run on the input, and if A returns no finite
    number.
    """
    if weights not in ("copy", "own"):
        raise Error(f"weights is {weights!r}, expected 'copy' or 'own'")
    if not 0 <= train <= MOST_STEPS:
        raise Error(f"train is {train}, expected a number of steps from 0 to {MOST_STEPS}")
    frameworks = [_framework(net, name) for name, net in zip(names, (a, b), strict=True)]
    chosen = _optimizers(optimizers, frameworks, train)
    given = _in_batches(_given(input, (a, b), names, same_axes), (a, b), names)
    laid = [_laid(net, given, same_axes)._replace(name=name) for net, name in zip((a, b), names, strict=True)]
    aligned = _aligned((a, b), names, laid, say)
    recordings = aligned.a.recording, aligned.b.recording
    say("running every operation of B on A's inputs")
    values = _values(recordings[0], laid[0])
    notes = _not_numbers(recordings[0], values, names[0])
    verdict = blame.judge(aligned, values, weights == "copy")
    say("running B with A's weights" if weights == "copy" else "running B")
    values = {name: values[name] for name in recordings[0].outputs}  # the others are large
    apart = _judged_by_results(aligned, verdict, values, laid, weights == "copy")
    trained = None
    if train:
        trained, verdict.training = _trained((a, b), names, laid, train, weights == "copy", say, verdict, chosen)
    return Comparison(
        names=names,
        frameworks=(recordings[0].framework, recordings[1].framework),
        pairs=verdict.judgements,
        findings=verdict.findings if aligned.certain else [],
        training=verdict.training if aligned.certain else [],
        only=([node.name for node in aligned.only_a], [node.name for node in aligned.only_b]),
        harmless=verdict.harmless,
        outputs=apart,
        copied=len(verdict.weights) if weights == "copy" else 0,
        map=verdict.moves,
        certain=aligned.certain,
        random=(list(recordings[0].random), list(recordings[1].random)),
        uncopied=verdict.uncopied,
        trained=trained,
        notes=[*_notes(recordings, names), *notes, *_uncopied(verdict, names[1])],
        rows=_rows(aligned, verdict),
    )


def _judged_by_results(
    aligned: Alignment, verdict: blame.Verdict, ours: Mapping[str, np.ndarray], laid: Sequence["_Laid"], copy: bool
) -> float | None:
    """How far the results are apart, and what this says of the verdict: excused, or nothing but that they are apart.

    None where the shapes differ, and where random numbers are drawn: no two runs have the same results then.
    """
    one, two = aligned.a.recording, aligned.b.recording
    counts, apart = (len(one.outputs), len(two.outputs)), None
    number = [Finding((None, None), "output", "number of results", counts, math.nan)] * (counts[0] != counts[1])
    if not (one.random or two.random):
        apart = _outputs(aligned, ours, _values_of_b(aligned, verdict, laid[1], copy, two.outputs))
        if apart is not None and apart <= AGREED:
            blame.excuse(verdict)
            verdict.uncopied.clear()
        verdict.findings += number
        known = not verdict.findings and not verdict.uncopied
        if aligned.certain and known and not (apart is not None and apart <= 1e3 * _loosest(verdict)):
            theirs = _values_of_b(aligned, verdict, laid[1], copy)
            verdict.findings = _divergence(aligned, one.values(laid[0].arrays), theirs, apart)
    else:
        verdict.findings += number
    return apart


def _notes(recordings: Sequence[Recording], names: Sequence[str]) -> list[str]:
    """What a reader should know of two recordings."""
    notes = [f"{name}: {note}" for name, each in zip(names, recordings, strict=True) for note in each.notes]
    why = "no two runs are the same, so these are not judged, and the results are not compared"
    return notes + [
        f"{name}: random numbers are drawn in {', '.join(dict.fromkeys(each.random))}: {why}"
        for name, each in zip(names, recordings, strict=True)
        if each.random
    ]


def _uncopied(verdict: blame.Verdict, name: str) -> list[str]:
    """What a reader should know of operations that were not judged."""
    why = "its weights cannot be matched to A's, so it is not judged; --weights own judges each network with its own"
    return [f"{name}: {operation}: {why}" for operation in verdict.uncopied]


def _not_numbers(recording: Recording, values: Mapping[str, np.ndarray], name: str) -> list[str]:
    """A note where A's results are NaN in part. Raises `Error` where they are not finite at all: nothing could be compared."""

    def has_nan(key: str) -> bool:
        return values[key].dtype.kind == "f" and bool(np.isnan(values[key]).any())

    def has_numbers(key: str) -> bool:
        return values[key].dtype.kind != "f" or bool(np.isfinite(values[key]).any())

    first = next((each.name for each in recording.operations if has_nan(each.name)), None)
    if recording.outputs and not any(map(has_numbers, recording.outputs)):
        place = f", from {first} on" if first else ""
        raise Error(f"{name} returns no finite number on this input{place}: pass a picture or an array as the input")
    if first and any(map(has_nan, recording.outputs)):
        return [f"{name}: {first} is partly NaN on this input, and so are results: no difference shows there"]
    return []


class _Laid(NamedTuple):
    """The inputs as a network takes them, and the orders of their axes."""

    arrays: list[np.ndarray]
    orders: list[tuple[int, ...]]
    name: str = ""  # of the network, for messages


def _framework(net: Any, name: str) -> str:
    """ "torch" or "keras". Raises `Error` if it is a network of neither."""
    modules = {base.__module__.partition(".")[0] for base in type(net).__mro__}
    bases = {f"{base.__module__}.{base.__qualname__}" for base in type(net).__mro__}
    if "torch.nn.modules.module.Module" in bases and "keras" not in modules:
        return "torch"
    if "keras" in modules and any(base.__name__ == "Layer" for base in type(net).__mro__):
        return "keras"
    raise Error(f"{name} is a {type(net).__name__}, expected a PyTorch module or a Keras model")


def _aligned(
    nets: Sequence[Any],
    names: Sequence[str],
    laid: Sequence[_Laid],
    say: Callable[[str], None],
    **mode: bool,
) -> Alignment:
    """Both recorded, in a mode of the recorders, and matched."""
    graphs = []
    for name, net, (arrays, *_) in zip(names, nets, laid, strict=True):
        say(f"recording {name}")
        recording = _recorded(net, arrays, name, **mode)
        shapes = [array.shape for array in arrays]
        graphs.append(alignment.graph(recording, dict(zip(recording.inputs, shapes, strict=True))))
    say("matching the operations")
    one, two = graphs
    if sorted(one.recording.keys) == sorted(
        two.recording.keys
    ):  # one framework has a dict's entries in its order, one sorts them
        by_key = dict(zip(two.recording.keys, two.outputs, strict=True))
        two.outputs = [by_key[key] for key in one.recording.keys]
    return alignment.align(graphs[0], graphs[1], list(map(_between, laid[0].orders, laid[1].orders)))


def _optimizers(given: Any, frameworks: Sequence[str], train: int) -> tuple[Optimizer, Optimizer] | None:
    if given is None:
        return None
    if not train or None in given:
        raise Error("optimisers are for both networks, and for steps of training: --train, --a-optimizer and --b-optimizer")
    one, two = (
        read_optimizer(each, framework, option)
        for each, framework, option in zip(given, frameworks, ("--a-optimizer", "--b-optimizer"), strict=True)
    )
    return one, two


def _trained(
    nets: Sequence[Any],
    names: Sequence[str],
    laid: Sequence[_Laid],
    train: int,
    copy: bool,
    say: Callable[[str], None],
    verdict: blame.Verdict,
    chosen: tuple[Optimizer, Optimizer] | None,
) -> tuple[steps.Training, list[Finding]]:
    """Steps of training in both, and what differs in training alone: not what `verdict` has already."""
    aligned = _aligned(nets, names, laid, say, training=True, random=False)
    if not aligned.certain:
        return steps.Training(train, notes=["most operations have no partner: no step was compared"]), verdict.training
    trained, found, in_training = steps.train(aligned, (laid[0].arrays, laid[1].arrays), train, copy, say, chosen)
    known = {(finding.kind, finding.attribute, repr(finding.values)) for finding in verdict.findings}
    alone = [each for each in in_training.findings if (each.kind, each.attribute, repr(each.values)) not in known]
    return trained, [*alone, *found, *([] if trained.measures else in_training.training)]


def _recorded(net: Any, arrays: Sequence[np.ndarray], name: str, **mode: bool) -> Recording:
    recorder = backends.recorder(_framework(net, name))
    with _told(name, arrays):
        recording: Recording = recorder.record(net, arrays, **mode)
    if not recording.operations:
        raise Error(f"{name} runs no operation on this input")
    return recording


@contextlib.contextmanager
def _told(name: str, arrays: Sequence[np.ndarray]) -> Iterator[None]:
    """Whatever a framework raises for a network and its inputs, as one message: a number that an embedding has no row for."""
    try:
        yield
    except Error as error:
        raise Error(f"{name}: {error}") from None
    except Exception as error:  # they have no common class
        if is_out_of_memory(error):
            raise
        line = next(iter(f"{error}".strip().splitlines()), "")[:300]
        inputs = " and ".join(f"{'x'.join(map(str, x.shape))}, from {x.min():.4g} to {x.max():.4g}" for x in arrays)
        raise Error(f"{name}: does not run on inputs of {inputs}: {type(error).__name__}: {line}") from None


def _given(input: Any, nets: Sequence[Any], names: Sequence[str], same_axes: bool) -> list[np.ndarray]:
    """Batches, channels first, an array an input."""
    if input is None:
        declared = [shapes for net in nets if (shapes := _declared(net, same_axes))]
        if not declared:
            raise Error("the shape of the input is not known: pass it, channels first, such as 3x224x224")
        if declared[-1] != declared[0]:
            one, two = (" and ".join("x".join(map(str, shape)) for shape in shapes) for shapes in declared)
            raise Error(
                f"{names[0]} takes {one}, {names[1]} {two}: pass an input that both take, channels first, such as 3x224x224"
            )
        whole = next(filter(None, map(_whole, nets)), [False] * len(declared[0]))
        input = [whole_numbers(each, 0, 9) if is_whole else each for each, is_whole in zip(declared[0], whole, strict=True)]
    several = isinstance(input, (tuple, list)) and not all(isinstance(each, (int, float)) for each in input)
    random = np.random.default_rng(0)
    return [_array(each, random) for each in (input if several else [input])]


def _in_batches(given: list[np.ndarray], nets: Sequence[Any], names: Sequence[str]) -> list[np.ndarray]:
    """The inputs in the batches that a program of `torch.export` was exported for, cut or repeated: it takes no others."""
    fitted = list(given)
    for place, (x, one, two) in enumerate(zip(given, *(_batches(net, len(given)) for net in nets), strict=True)):
        if one and two and one != two:
            raise Error(f"{names[0]} was exported for batches of {one}, {names[1]} of {two}: export both for the same")
        fitted[place] = np.resize(x, (one or two, *x.shape[1:])) if one or two else x
    return fitted


def _batches(net: Any, inputs: int) -> list[int | None]:
    """The batch of each of so many inputs that a program of `torch.export` was exported for, or None for any."""
    if not any(base.__name__ == "GraphModule" for base in type(net).__mro__):
        return [None] * inputs
    values = [node.meta.get("val") for node in net.graph.nodes if node.op == "placeholder"]
    sizes = [next(iter(getattr(value, "shape", ())), None) for value in values]
    return [size if isinstance(size, int) else None for size in (*sizes, *[None] * inputs)][:inputs]


def _array(given: Any, random: np.random.Generator) -> np.ndarray:
    """One input: an array as it is, or noise of a shape."""
    if isinstance(given, (tuple, list)) and all(isinstance(size, int) for size in given):
        _check_size(given)
        return random.standard_normal((BATCH, *given))
    array = np.asarray(given)
    return array.astype(np.int64) if array.dtype in (np.int32, np.int64) else array.astype(np.float64)


def whole_numbers(shape: tuple[int, ...], low: int, high: int) -> np.ndarray:
    """A batch of whole numbers from `low` to `high`, as the words of an embedding are."""
    _check_size(shape)
    return np.random.default_rng(0).integers(low, high + 1, (BATCH, *shape))


def _check_size(shape: Sequence[int]) -> None:
    if not all(0 < size for size in shape) or math.prod(shape) * BATCH > LARGEST_BATCH_VALUE:
        raise Error(f"the shape of the input is {'x'.join(map(str, shape))}, expected sizes above 0, of at most 1e8 numbers")


def _declared(net: Any, same_axes: bool) -> list[tuple[int, ...]] | None:
    """The shapes that a network says it takes, channels first unless `same_axes`, without the batch."""
    spec = getattr(net, "spec", None)
    if isinstance(spec, dict) and "input" in spec:
        return [tuple(spec["input"])]
    shapes = _keras_shapes(net)
    if shapes and not any(None in shape for shape in shapes):
        return [(shape[-1], *shape[:-1]) if len(shape) > 1 and not same_axes else shape for shape in shapes]
    return None


def _whole(net: Any) -> list[bool]:
    """Which inputs of a Keras model are whole numbers, in the order of `_keras_shapes`; nothing if it does not say."""
    if _framework(net, "") != "keras":
        return []
    given = getattr(net, "_inputs_struct", None)  # of a functional model
    given = getattr(net, "inputs", None) if given is None else given
    given = list(given.values()) if isinstance(given, dict) else given if isinstance(given, list) else [given]
    return ["int" in str(getattr(each, "dtype", "")) for each in given]


def _keras_shapes(net: Any) -> list[tuple[Any, ...]]:
    """The shapes of a Keras model's inputs, without the batch; none where it does not say."""
    if _framework(net, "") != "keras":
        return []
    try:
        shapes = net.input_shape
    except (AttributeError, ValueError):
        return []
    shapes = list(shapes.values()) if isinstance(shapes, dict) else shapes if isinstance(shapes, list) else [shapes]
    return [tuple(shape[1:]) for shape in shapes] if all(isinstance(shape, tuple) and shape for shape in shapes) else []


def _laid(net: Any, given: Sequence[np.ndarray], same_axes: bool) -> _Laid:
    """The inputs as a network takes them."""
    if same_axes:
        return _Laid(list(given), [tuple(range(each.ndim)) for each in given])
    shapes: Sequence[tuple[Any, ...] | None] = _keras_shapes(net)
    if len(shapes) != len(given):
        shapes = [None] * len(given)
    orders = [_order(net, array, shape) for array, shape in zip(given, shapes, strict=True)]
    arrays = [np.ascontiguousarray(array.transpose(order)) for array, order in zip(given, orders, strict=True)]
    return _Laid(arrays, orders)


def _order(net: Any, x: np.ndarray, shape: tuple[Any, ...] | None) -> tuple[int, ...]:
    """The order of an input's axes in which a network takes it, which says that it is of a shape, or None."""
    same, last = tuple(range(x.ndim)), (0, *range(2, x.ndim), 1)
    if _framework(net, "") != "keras" or x.ndim < 3:
        return same

    def fits(order: Sequence[int]) -> bool:
        sizes = [x.shape[axis] for axis in order[1:]]
        return shape is None or (
            len(sizes) == len(shape) and all(want in (None, size) for want, size in zip(shape, sizes, strict=True))
        )

    return last if fits(last) or not fits(same) else same


def _between(one: tuple[int, ...], two: tuple[int, ...]) -> Layout:
    """How A's input lies in B's."""
    return tuple(one.index(axis) for axis in two)


def _loosest(verdict: blame.Verdict) -> float:
    return max((judgement.tolerance for judgement in verdict.judgements), default=1e-12)


def _values(recording: Recording, laid: _Laid, only: Collection[str] | None = None) -> dict[str, np.ndarray]:
    with _told(laid.name, laid.arrays):
        return recording.values(laid.arrays, only)


def _values_of_b(
    aligned: Alignment, verdict: blame.Verdict, laid: _Laid, copy: bool, only: Collection[str] | None = None
) -> dict[str, np.ndarray]:
    """B's values, with `only` those of some names, computed with A's weights if `copy`; B keeps its own."""
    recording = aligned.b.recording
    own = {key: np.array(recording.weight(*key)) for key in verdict.weights} if copy else {}
    try:
        if copy:
            recording.load(verdict.weights)
        return _values(recording, laid, only)
    finally:
        if copy:
            recording.load(own)


def _outputs(aligned: Alignment, values: Mapping[str, np.ndarray], theirs: Mapping[str, np.ndarray]) -> float | None:
    """How far the networks' results are apart."""
    apart: list[float | None] = []
    for one, two in zip(aligned.a.outputs, aligned.b.outputs, strict=False):
        layout = aligned.operand(aligned.a.roots[one], aligned.b.roots[two])
        wanted = alignment.carried(values[one], layout)
        apart.append(blame.apart(wanted, theirs[two]) if wanted.shape == theirs[two].shape else None)
    if not apart or None in apart:
        return None
    return max(value for value in apart if value is not None)


def _divergence(
    aligned: Alignment, values: Mapping[str, np.ndarray], theirs: Mapping[str, np.ndarray], apart: float | None
) -> list[Finding]:
    """One finding that blames nothing: the first value to diverge where each operation alone is sound."""
    for a, b in aligned.pairs:
        wanted = alignment.carried(values[a.name], aligned.layouts.get(b.name))
        difference = blame.apart(wanted, theirs[b.name])
        if not difference <= 1e-6:
            return [Finding((a.name, b.name), b.kind, "not known", ("", ""), difference, (a.source, b.source))]
    return [Finding((None, None), "output", "not known", ("", ""), math.inf if apart is None else apart)]


def _rows(aligned: Alignment, verdict: blame.Verdict) -> list[dict[str, Any]]:
    """Both graphs beside one another, in the order of A's, each of B's without a partner before the next that has one."""
    judgements = {judgement.b: judgement for judgement in verdict.judgements}
    back, rows = aligned.back, list[dict[str, Any]]()
    ones, twos = alignment.in_order(aligned.a), alignment.in_order(aligned.b)
    left = list(ones)

    def row(a: alignment.Node | None, b: alignment.Node | None) -> dict[str, Any]:
        judged = judgements.get(b.name) if b else None
        return {
            "a": _cell(a), "b": _cell(b), "difference": judged.difference if judged else None,
            "sound": judged.sound if judged else None,
        }  # fmt: skip

    for b in twos:
        partner = back.get(b.name)
        while partner and left and left[0].name != partner:
            rows.append(row(left.pop(0), None))
        rows.append(row(left.pop(0) if partner and left else None, b))
    return rows + [row(a, None) for a in left]


def _cell(node: alignment.Node | None) -> dict[str, Any] | None:
    if node is None:
        return None
    return {"name": node.name, "kind": blame.called(node), "shape": list(node.shape[1:]), "source": node.source}


def as_json(report: Comparison) -> dict[str, Any]:
    """A report as JSON has it."""
    values = {name: getattr(report, name) for name in report.__dataclass_fields__ if name != "rows"}
    if report.trained:
        values["trained"] = _steps_as_json(report.trained)
    findings = {key: [_plain(finding) for finding in values[key]] for key in ("findings", "training")}
    return values | findings | {"pairs": [pair._asdict() for pair in report.pairs], "same": report.same, "sound": report.sound}


def _steps_as_json(trained: steps.Training) -> dict[str, Any]:
    fields = {name: getattr(trained, name) for name in trained.__dataclass_fields__}
    measures = [measure._asdict() | {"sound": measure.sound} for measure in trained.measures]
    return fields | {"measures": measures, "divergence": trained.divergence and trained.divergence._asdict()}


def _plain(finding: Finding) -> dict[str, Any]:
    fields = {name: getattr(finding, name) for name in finding.__dataclass_fields__}
    return fields | {"values": [_json(value) for value in finding.values], "count": finding.count}


def _json(value: Any) -> Any:
    if isinstance(value, (tuple, list)):
        return [_json(part) for part in value]
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)
