"""Which operations of B do not do what A's do: each is run on A's inputs, so that no fault hides or causes another.

An operation is at fault by its own difference on A's values, ||a - b|| / ||a||, beyond rounding: the ladder's tolerance, or
ten times what A's operation departs from itself on inputs and weights one rounding apart. What differs between the two is then
named by their attributes.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from shared.checks import is_out_of_memory

from .. import ladder
from . import remedies
from .alignment import Alignment, Graph, Layout, Node, Root, by_channels, carried, swapped

TOLERANCE32 = 1e-5  # of one operation whose result is float32
CONSTANTS = 1e-6  # what constants may change that a framework keeps in float32, as TensorFlow does a slope
OTHERWISE = ("left out", "added", "place", "operands", "operation", "transposed")  # what may be another way to write the same
REACH = 8.0  # from minus this to this, activations are compared beside the values at hand
LEARNED = {"bias": "bias", "scale": "scale", "shift": "shift"}  # roles that one of the two may have and the other not


@dataclass(frozen=True)
class Finding:
    """One fault, in one or several operations."""

    operations: tuple[str | None, str | None]  # of A and of B; None: it has none
    kind: str
    attribute: str
    values: tuple[Any, Any]
    difference: float  # of this operation alone, on A's inputs
    sources: tuple[str, str] = ("", "")
    remedy: str = ""
    trap: str | None = None
    others: tuple[tuple[str | None, str | None], ...] = ()  # operations with the same fault

    @property
    def count(self) -> int:
        """The number of operations that have it."""
        return 1 + len(self.others)


class Judgement(NamedTuple):
    """A pair, and how far B's operation is from A's on A's inputs."""

    a: str
    b: str
    difference: float
    tolerance: float

    @property
    def sound(self) -> bool:
        """Whether the two do the same."""
        return self.difference <= self.tolerance


@dataclass
class Verdict:
    """What `judge` found."""

    judgements: list[Judgement] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    harmless: list[str] = field(default_factory=list)  # operations of either without a partner that change nothing
    weights: dict[tuple[str, str], np.ndarray] = field(default_factory=dict)  # A's, for `load` of B
    moves: list[dict[str, Any]] = field(default_factory=list)  # the same in words
    training: list[Finding] = field(default_factory=list)  # what differs in training alone
    uncopied: list[str] = field(default_factory=list)  # B's operations that could not get A's weights


def judge(alignment: Alignment, values: Mapping[str, np.ndarray], copy: bool = True) -> Verdict:
    """Run every matched operation of B on A's `values` and say what differs; with `copy`, on A's weights too."""
    verdict, judge_one = Verdict(), _Judge(alignment, values, copy)
    found: list[tuple[int, Finding]] = []
    order = {node.name: place for place, node in enumerate(alignment.b.nodes.values())}
    for a, b in alignment.pairs:
        findings = judge_one.pair(a, b, verdict)
        found += [(order[b.name], finding) for finding in findings]
    found += judge_one.lonely(verdict, order)
    findings = [finding for _, finding in sorted(found, key=lambda item: item[0])]
    # Fewer rows after a smaller map are the fault of what made the map smaller.
    causes = [finding for finding in findings if (finding.kind, finding.attribute) != ("linear", "kernel")]
    verdict.findings = _one_place(grouped(causes if copy and causes else findings))
    verdict.training = grouped(verdict.training)
    return verdict


def excuse(verdict: Verdict) -> None:
    """Where the results agree, operations that do not correspond one to one are the same function written otherwise."""
    kept = []
    for finding in verdict.findings:
        otherwise = finding.attribute in OTHERWISE or not math.isfinite(finding.difference)
        if otherwise and finding.attribute not in LEARNED:
            verdict.harmless += [name for pair in (finding.operations, *finding.others) for name in pair if name]
        else:
            kept.append(finding)
    verdict.findings = kept


class _Judge:
    """The judging of one alignment."""

    def __init__(self, alignment: Alignment, values: Mapping[str, np.ndarray], copy: bool) -> None:
        self.alignment, self.values, self.copy = alignment, values, copy
        self.back = alignment.back

    def pair(self, a: Node, b: Node, verdict: Verdict) -> list[Finding]:
        """The findings of one pair."""
        alignment = self.alignment
        ones, twos = alignment.a.operands(a), swapped(alignment, a, b)
        layouts = alignment.of_operands(a, b)
        weights = copied(alignment, a, b, layouts) if self.copy or alignment.a is alignment.b else {}
        self._note_weights(a, b, weights, layouts, verdict)
        if draws(alignment.a, a) or draws(alignment.b, b):
            return []
        out, problem = self._run(a, b, layouts, twos, weights, self.values)
        wanted = carried(self.values[a.name], alignment.layouts.get(b.name))
        difference = apart(_wide(wanted), _wide(out)) if out is not None else math.inf
        tolerance = _tolerance(wanted, out)
        if not difference <= tolerance and math.isfinite(difference):
            tolerance = max(tolerance, 10 * self._control(a))
        wrong = not difference <= tolerance
        findings = self._wiring(a, b, ones, twos)
        resized = self._resized(a, b, layouts)
        activations = a.kind == b.kind == "activation"
        elsewhere = activations and not wrong and not resized and self._part_elsewhere(a, b, layouts, twos, weights)
        unseen = not activations and not np.any(wanted)
        told = differing(alignment, a, b, layouts, weights) if wrong or elsewhere or unseen else []
        told = [item for item in told if not (resized and _of_size(alignment, a, b, item[0]))]
        if not told and difference <= CONSTANTS:
            wrong, tolerance = False, max(tolerance, difference)
        told += [always for always in _always(a, b) if always not in told]
        if (wrong or elsewhere) and not told and not findings and not resized:
            if self._is_uncopied(a, b, weights):
                verdict.uncopied.append(b.name)
                return []
            told = self._unnamed(a, b, layouts, problem)
        if told or not (wrong and resized):
            verdict.judgements.append(Judgement(a.name, b.name, difference, tolerance))
        findings += [self._finding(a, b, attribute, pair, difference) for attribute, pair in told]
        for key in ("momentum", "rate"):
            pair = a.attributes.get(key), b.attributes.get(key)
            if None not in pair and not _same(*pair):
                verdict.training.append(self._finding(a, b, key, pair, 0.0))
        return findings

    def _resized(self, a: Node, b: Node, layouts: Sequence[Layout]) -> bool:
        """Whether B's operation ran on other sizes than A's: the fault of one before, and it may not run on A's inputs."""
        ours = [carried(self.values[name], layout).size for name, layout in zip(a.inputs, layouts, strict=False)]
        theirs = [math.prod(self.alignment.b.shapes[name]) for name in b.inputs]
        return len(ours) == len(theirs) and sorted(ours) != sorted(theirs)

    def _part_elsewhere(
        self, a: Node, b: Node, layouts: Sequence[Layout], twos: Sequence[Root], weights: Mapping[str, np.ndarray]
    ) -> bool:
        """Whether two activations are apart on numbers that the values at hand may not reach, as a ReLU and a ReLU6 above 6."""
        if {"softmax", "log_softmax"} & {called(a), called(b)} or len(a.inputs) != 1:
            return False
        value = self.values[a.inputs[0]]
        if value.dtype.kind != "f" or not value.size:
            return False
        shape = value.shape
        count = -(-64 // math.prod(shape))
        for grid in np.linspace(-REACH, REACH, count * math.prod(shape)).reshape(count, *shape):
            out, _ = self._run(a, b, layouts, twos, weights, {a.inputs[0]: grid})
            wanted = carried(self.alignment.a.apply(a, [grid]), self.alignment.layouts.get(b.name))
            if out is not None and not apart(_wide(wanted), _wide(out)) <= max(CONSTANTS, _tolerance(wanted, out)):
                return True
        return False

    def _run(
        self,
        a: Node,
        b: Node,
        layouts: Sequence[Layout],
        twos: Sequence[Root],
        weights: Mapping[str, np.ndarray],
        values: Mapping[str, np.ndarray],
    ) -> tuple[np.ndarray | None, str]:
        """The result of B's operation on what A's takes among `values`, or why there is none."""
        operands = [carried(values[name], layout) for name, layout in zip(a.inputs, layouts, strict=False)]
        if list(twos) != self.alignment.b.operands(b):
            operands.reverse()
        if len(operands) != len(b.inputs):
            return None, f"takes {len(b.inputs)} operands, not {len(a.inputs)}"
        try:
            return np.asarray(self.alignment.b.apply(b, operands, weights)), ""
        except Exception as error:  # whatever a framework raises for shapes that do not fit
            if is_out_of_memory(error):
                raise
            return None, f"{error}".splitlines()[0][:200] if f"{error}" else type(error).__name__

    def _control(self, a: Node) -> float:
        """How far A's operation departs from itself on inputs and weights one rounding apart."""
        graph, inputs = self.alignment.a, {name: self.values[name] for name in a.inputs}
        state = {role: graph.weight(a, role) for role in a.weights}
        precision = "float32" if self.values[a.name].dtype == np.float32 else "float64"
        # Apart from one another too: an operation may have the name of a role.
        inputs, state = (
            given
            | ladder.one_rounding_apart({key: array for key, array in given.items() if array.dtype.kind == "f"}, precision)
            for given in (inputs, state)
        )
        out = graph.apply(a, [inputs[name] for name in a.inputs], state)
        return ladder.relative(self.values[a.name], out)

    def _is_uncopied(self, a: Node, b: Node, weights: Mapping[str, np.ndarray]) -> bool:
        """Whether operations that these terms do not know have weights, of which nobody can say which is which."""
        return self.copy and "other" in (a.kind, b.kind) and not {*a.weights, *b.weights} <= {*weights}

    def _unnamed(self, a: Node, b: Node, layouts: Sequence[Layout], problem: str) -> list[tuple[str, tuple[Any, Any]]]:
        """What differs where no attribute does: the order of elements, weights, or nothing that these terms know."""
        wanted = self._spatial(a, b)
        for layout in layouts[:1]:
            if wanted and isinstance(layout, np.ndarray):
                if layout.shape == _permuted(self.alignment.a.shapes[a.inputs[0]], wanted):
                    return [("order of elements", ("channels together", _reordering(layout, a, wanted)))]
            elif wanted and isinstance(layout, tuple) and layout != wanted:
                return [("order of axes", (wanted, layout))]
        if not self.copy:
            return self._weights_differ(a, b, layouts)
        if problem:
            return [("what it accepts", ("runs on this input", problem))]
        return [("function", (called(a), called(b)))]

    def _spatial(self, a: Node, b: Node) -> tuple[int, ...] | None:
        one, two = a.attributes.get("channels"), b.attributes.get("channels")
        if a.kind in ("convolution", "pool", "normalization") and isinstance(one, int) and isinstance(two, int):
            return by_channels(one, two, len(self.alignment.a.shapes[a.inputs[0]]))
        return None

    def _weights_differ(self, a: Node, b: Node, layouts: Sequence[Layout]) -> list[tuple[str, tuple[Any, Any]]]:
        """Which weights of two operations with the same attributes differ, and how."""
        told = []
        right = copied(self.alignment, a, b, layouts)
        for role, array in right.items():
            ours, theirs = self.alignment.a.weight(a, role), self.alignment.b.weight(b, role)
            if array.shape != theirs.shape or not ladder.relative(_wide(array), _wide(theirs)) <= 1e-6:
                same = array.shape == theirs.shape
                if role == "kernel" and same and ours.shape == theirs.shape and ladder.relative(ours, theirs) <= 1e-6:
                    told.append(("flatten order", ("for A's order of the map", "the same rows, for another order of the map")))
                elif same and np.allclose(np.sort(array.ravel()), np.sort(theirs.ravel()), rtol=1e-6, atol=0):
                    told.append(("layout of the kernel", ("as A's", "the same numbers in another order")))
                else:
                    told.append((f"values of the {role}", ("A's", f"{ladder.relative(_wide(array), _wide(theirs)):.1e} away")))
        return told or [("function", (called(a), called(b)))]

    def _note_weights(
        self, a: Node, b: Node, weights: Mapping[str, np.ndarray], layouts: Sequence[Layout], verdict: Verdict
    ) -> None:
        for role, array in (weights or copied(self.alignment, a, b, layouts)).items():
            theirs, (owner, name) = self.alignment.a.weights_name(a, role), b.weights[role]
            verdict.weights[owner, name] = array.reshape(self.alignment.b.recording.weight(owner, name).shape)
            move: dict[str, Any] = {"from": theirs, "to": self.alignment.b.weights_name(b, role), "role": role}
            rows = rows_of(layouts, self.alignment.a.weight(a, role)) if (a.kind, role) == ("linear", "kernel") else None
            verdict.moves.append(move | ({"rows": rows.tolist()} if rows is not None else {}))

    def _wiring(self, a: Node, b: Node, ones: Sequence[Root], twos: Sequence[Root]) -> list[Finding]:
        """Operands of B's that are not the ones of A's."""
        findings = []
        ours = [self._reached(self.alignment.a, root.name, set(self.alignment.partner)) for root in ones]
        theirs = [self._reached(self.alignment.b, root.name, set(self.back)) for root in twos]
        theirs = [{self.back[name] for name in names} for names in theirs]
        for place, (one, two) in enumerate(zip(ours, theirs, strict=False)):
            if one & two or not one or not two:
                continue
            if any(self._equal(x, y) for x in one for y in two):
                continue
            there = sorted(self.alignment.partner[name] for name in two)
            values = ", ".join(sorted(one)), ", ".join(there)
            if any(one & other for other in theirs) and a.kind not in ("attention", "matmul"):
                values = f"operand {place + 1}: {values[0]}", f"operand {place + 1}: {values[1]}"
            findings.append(self._finding(a, b, "operands", values, math.nan))
            break
        return findings

    def _equal(self, one: str, two: str) -> bool:
        x, y = self.values[one], self.values[two]
        return x.shape == y.shape and apart(x, y) <= 1e-12

    @staticmethod
    def _reached(graph: Graph, name: str, known: set[str]) -> set[str]:
        """The nearest values with a partner that a value comes from."""
        reached, stack, seen = set(), [name], set()
        while stack:
            name = stack.pop()
            if name in known:
                reached.add(name)
            elif name in graph.nodes and name not in seen:
                seen.add(name)
                stack += [root.name for root in graph.operands(graph.nodes[name])]
        return reached

    def lonely(self, verdict: Verdict, order: Mapping[str, int]) -> list[tuple[int, Finding]]:
        """The findings of operations without a partner."""
        found = []
        parts = [_parts(graph, only) for graph, only in self._lonely_sides()]
        random = [_random(graph, only) for graph, only in self._lonely_sides()]
        for node in self.alignment.only_a:
            if node.name in parts[0] or node.name in random[0]:
                continue
            difference = self._own_effect(self.values.get(node.name), [self.values[name] for name in node.inputs])
            if difference <= _tolerance(self.values[node.name], None):
                verdict.harmless.append(node.name)
                continue
            with_it = tuple((name, None) for name, owner in parts[0].items() if owner == node.name)
            finding = self._finding(node, None, "left out", (called(node), "none"), difference)
            found.append((self._place(node, order), replace(finding, others=with_it)))
        for node in self.alignment.only_b:
            if node.name in parts[1] or node.name in random[1]:
                continue
            operands = [value for root in self.alignment.b.operands(node) if (value := self._theirs(root)) is not None]
            try:
                difference = self._own_effect(self.alignment.b.apply(node, operands), operands)
            except Exception as error:  # whatever a framework raises for shapes that do not fit, and for unknown operands
                if is_out_of_memory(error):
                    raise
                difference = math.nan
            if difference <= TOLERANCE32 / 1e3:
                verdict.harmless.append(node.name)
                continue
            more = tuple((None, name) for name, owner in parts[1].items() if owner == node.name)
            finding = self._finding(None, node, "added", ("none", called(node)), difference)
            found.append((order[node.name], replace(finding, others=more)))
        return _moved(found)

    def _lonely_sides(self) -> list[tuple[Graph, list[Node]]]:
        return [(self.alignment.a, self.alignment.only_a), (self.alignment.b, self.alignment.only_b)]

    def _place(self, node: Node, order: Mapping[str, int]) -> int:
        """Where in B a node of A's would be: after what it takes."""
        reached = self._reached(self.alignment.a, node.name, set(self.alignment.partner))
        return max((order.get(self.alignment.partner[name], -1) for name in reached), default=-1)

    def _theirs(self, root: Root) -> np.ndarray | None:
        """A's value of what a node of B's takes, as it lies in B."""
        reached = self._reached(self.alignment.b, root.name, set(self.back))
        for name in sorted(reached):
            laid = carried(self.values[self.back[name]], self.alignment.layouts.get(name))
            if root.positions is None or laid.size != root.positions.size:
                return laid
            return laid.ravel()[root.positions]
        return None

    @staticmethod
    def _own_effect(out: np.ndarray | None, inputs: Sequence[np.ndarray]) -> float:
        """How far an operation takes its input from itself."""
        same = [apart(value, out) for value in inputs if out is not None and value.shape == out.shape]
        return min(same, default=math.inf)

    def _finding(self, a: Node | None, b: Node | None, attribute: str, values: tuple[Any, Any], difference: float) -> Finding:
        node = b or a
        assert node
        finding = Finding(
            (a.name if a else None, b.name if b else None), node.kind, attribute, values, difference,
            (readable(a.source) if a else "", readable(b.source) if b else ""),
        )  # fmt: skip
        remedy, trap = remedies.of(node.kind, attribute, values, self.alignment.b.recording.framework)
        return replace(finding, remedy=remedy, trap=trap)


def _parts(graph: Graph, only: Sequence[Node]) -> dict[str, str]:
    """{operation without a partner: the last of those without one that its result goes into}, of those that feed no other."""
    names = {node.name for node in only}
    users: dict[str, set[str]] = {}
    for node in graph.nodes.values():
        for root in graph.operands(node):
            users.setdefault(root.name, set()).add(node.name)
    outputs = {graph.roots[name].name for name in graph.outputs}
    parts: dict[str, str] = {}
    for node in reversed(list(graph.nodes.values())):
        after = users.get(node.name, set())
        if node.name in names and after and after <= names and node.name not in outputs:
            user = sorted(after)[0]
            parts[node.name] = parts.get(user, user)
    return parts


def _random(graph: Graph, only: Sequence[Node]) -> set[str]:
    """The nodes that draw random numbers, and those without a partner that make something of these, as a mask of them."""
    names, found = {node.name for node in only}, set[str]()
    for node in graph.nodes.values():
        takes = {root.name for root in graph.operands(node)}
        if draws(graph, node) or (node.name in names and takes & found):
            found.add(node.name)
    return found


def readable(source: str) -> str:
    """A place in the code for people: from the package, or from the folder that the command runs in; none in this package."""
    if source.startswith(f"{Path(__file__).parent}/"):
        return ""
    return source.rpartition("/site-packages/")[2].removeprefix(f"{Path.cwd()}/")


def apart(one: np.ndarray, two: np.ndarray) -> float:
    """||one - two|| / ||one||, where NaN beside NaN and infinity beside the same infinity are no difference."""
    with np.errstate(invalid="ignore"):  # infinity less infinity
        difference = ladder.relative(one, two)
        if math.isfinite(difference) or one.shape != two.shape:
            return difference
        same = ~np.isfinite(one) & ((one == two) | (np.isnan(one) & np.isnan(two)))
        return ladder.relative(np.where(same, 0, one), np.where(same, 0, two))


def draws(graph: Graph, node: Node) -> bool:
    """Whether a node draws random numbers, so that no two runs of it are the same."""
    return not {node.name, *(member.name for member in node.members)}.isdisjoint(graph.recording.random)


def _wide(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float64) if array.dtype.kind in "fiub" else array


def _tolerance(one: np.ndarray, two: np.ndarray | None) -> float:
    narrow = any(array is not None and array.dtype in (np.float32, np.float16) for array in (one, two))
    return TOLERANCE32 if narrow else ladder.TOLERANCES["float64"]["activations"]


def _permuted(shape: Sequence[int], order: Sequence[int]) -> tuple[int, ...]:
    return tuple(shape[axis] for axis in order)


def _reordering(layout: np.ndarray, a: Node, order: tuple[int, ...]) -> str:
    """What a map of positions does, in words."""
    channels = a.attributes["channels"]
    there = order.index(channels % len(order))
    if layout.ndim == len(order):
        moved = np.moveaxis(layout, there, -1).reshape(-1, layout.shape[there])
        size = moved.shape[-1]
        stride = abs(int(moved[0, 1] - moved[0, 0])) if size > 1 else 1
        first = (moved[0] - moved[0].min()) // max(stride, 1)
        if size > 1 and sorted(first) == list(range(size)) and (moved - moved.min(1, keepdims=True) == first * stride).all():
            return f"channels in the order {', '.join(map(str, first))}"
    return "reshaped, so that channels and pixels are mixed"


def called(node: Node) -> str:
    """A node in words."""
    attributes = node.attributes
    if node.kind == "activation":
        return str(attributes.get("function"))
    if node.kind == "pool":
        return f"{attributes.get('how')} pool"
    if node.kind == "normalization":
        return f"{attributes.get('over')} norm"
    if node.kind == "other":
        return str(attributes.get("operation"))
    if node.kind == "reduce":
        return str(attributes.get("how"))
    return node.kind.replace("_", " ")


def _moved(found: list[tuple[int, Finding]]) -> list[tuple[int, Finding]]:
    """The same operation left out in one place and added in another is one finding."""
    left = list(found)
    for place, finding in found:
        if finding.attribute != "left out":
            continue
        for other in left:
            if other[1].attribute == "added" and other[1].values[1] == finding.values[0] and abs(other[0] - place) < 4:
                both = replace(
                    finding, operations=(finding.operations[0], other[1].operations[1]), attribute="place",
                    values=("here", "elsewhere"),
                    sources=(finding.sources[0], other[1].sources[1]), remedy=f"move the {finding.values[0]} to where A has it",
                )  # fmt: skip
                left.remove(other)
                left[left.index((place, finding))] = (min(place, other[0]), both)
                break
    return left


def _one_place(findings: list[Finding]) -> list[Finding]:
    """Strides that A has at another convolution are the trap of the two ResNets."""
    strides = {finding.values for finding in findings if finding.attribute == "stride"}
    return [
        replace(finding, trap="resnet-version")
        if finding.attribute == "stride" and finding.values[::-1] in strides
        else finding
        for finding in findings
    ]


def rows_of(layouts: Sequence[Layout], kernel: np.ndarray) -> np.ndarray | None:
    """The row of A's kernel that is each row of B's, where a flattened map lies in another order; else None."""
    layout = layouts[0] if layouts else None
    if not isinstance(layout, np.ndarray) or layout.ndim < 2:
        return None
    rows = layout.reshape(-1, layout.shape[-1])[0]
    size = kernel.shape[0]
    fits = rows.size == size and np.array_equal(np.sort(rows), np.arange(size))
    return rows if fits and not np.array_equal(rows, np.arange(size)) else None


def copied(
    alignment: Alignment,
    a: Node,
    b: Node,
    layouts: Sequence[Layout],
    of: Callable[[np.ndarray], np.ndarray] = lambda array: array,
) -> dict[str, np.ndarray]:
    """{role: A's weight as B's operation takes it}, of the roles that both have and whose shapes fit.

    With `of`, what that gives for A's weight, in its shape, goes the same way.
    """
    taken = {}
    for role in a.weights:
        if role not in b.weights or a.kind == "scaling" != b.kind or (a.kind == "scaling" and _first(alignment.a, a)):
            continue
        array, shape = of(alignment.a.weight(a, role)), alignment.b.weight(b, role).shape
        rows = rows_of(layouts, array) if (a.kind, role) == ("linear", "kernel") else None
        if rows is not None:
            array = array[rows]
        is_number = "constant" in role and (array.size == 1 or len(a.weights) > 1)
        if is_number and not alignment.a.recording.trains(*a.weights[role]):
            continue  # in the code, not a weight
        if "constant" in role and array.shape != shape:
            full = array.reshape((1,) * (len(a.shape) - array.ndim) + array.shape)
            array = carried(full, alignment.layouts.get(b.name))
            array = array.reshape(shape) if array.size == math.prod(shape) else array
        if array.shape == shape:
            taken[role] = array
    return taken


def _first(graph: Graph, node: Node) -> bool:
    """Whether nothing with weights comes before a node: it scales the network's input."""
    names, seen = [root.name for root in graph.operands(node)], set()
    while names:
        before = graph.nodes.get(names.pop())
        if before and before.name not in seen:
            seen.add(before.name)
            if before.kind in ("convolution", "linear", "embedding"):
                return False
            names += [root.name for root in graph.operands(before)]
    return True


def _always(a: Node, b: Node) -> list[tuple[str, tuple[Any, Any]]]:
    """What makes another function whatever the numbers are at the moment: epsilon, and weights that one of the two lacks."""
    told: list[tuple[str, tuple[Any, Any]]] = []
    epsilons = a.attributes.get("epsilon"), b.attributes.get("epsilon")
    if a.kind == b.kind and None not in epsilons and not _same(*epsilons):
        told.append(("epsilon", epsilons))
    if a.kind == b.kind:
        told += [
            (words, ("one" if role in a.weights else "none", "one" if role in b.weights else "none"))
            for role, words in LEARNED.items()
            if (role in a.weights) != (role in b.weights)
        ]
    return told


def _same(one: Any, two: Any) -> bool:
    numbers = isinstance(one, (int, float)) and isinstance(two, (int, float))
    return one == two or (numbers and math.isclose(one, two, rel_tol=1e-6))


def differing(
    alignment: Alignment, a: Node, b: Node, layouts: Sequence[Layout], weights: Mapping[str, np.ndarray]
) -> list[tuple[str, tuple[Any, Any]]]:
    """The attributes in which two paired operations differ, B's with `weights`, and both values, in B's order of axes."""
    if a.kind != b.kind:
        return [("operation", (called(a), called(b)))]
    if a.kind == "scaling":
        return _scalings(alignment, a, b, weights)
    one, two = _comparable(alignment.a, a), _comparable(alignment.b, b)
    order = layouts[0] if layouts and isinstance(layouts[0], tuple) else None
    rank = len(alignment.b.shapes[b.inputs[0]]) if b.inputs else 0
    for key in ("axes", "axis"):
        if order and key in one:
            axes = one[key] if isinstance(one[key], tuple) else (one[key],)
            moved = tuple(sorted(order.index(axis % len(order)) for axis in axes))
            one[key] = moved if isinstance(one[key], tuple) else moved[0]
        if key == "axis" and key in two and rank:
            two[key] = two[key] % rank
    for key in ("amounts", "starts", "stops", "steps"):
        if order and key in one:
            one[key] = _permuted(one[key], order)
    told = [(key, (one.get(key), two.get(key))) for key in sorted({*one, *two}) if not _same(one.get(key), two.get(key))]
    names = dict(told)
    other_window = {"stride", "kernel", "window", "dilation"} & set(names)
    if "padding" in names and (sorted(a.shape) == sorted(b.shape) if other_window else _same_reach(alignment, a, b)):
        told = [item for item in told if item[0] != "padding"]  # it is the window's, to keep the size
    for decisive in ("function", "how", "mode", "over", "training"):  # beside which the others mean nothing
        if decisive in names:
            told = [item for item in told if item[0] == decisive]
    if "align_corners" in names:  # half pixels are for where corners are not aligned
        told = [item for item in told if item[0] != "half_pixel"]
    return [item for item in told if item[0] not in ("padding_value", "count_padding") or None not in item[1]]


def _of_size(alignment: Alignment, a: Node, b: Node, attribute: str) -> bool:
    """Whether an attribute may differ since two operations ran on maps of other sizes."""
    if attribute != "padding":
        return attribute in ("size", "starts", "stops")
    one, two = ([before for before, _ in node.attributes["padding"]] for node in (a, b))
    return one == two or (_as_same(alignment.a, a) and _as_same(alignment.b, b))


def _as_same(graph: Graph, node: Node) -> bool:
    """Whether a padding is what TensorFlow's `same` makes of this size: ceil(size / stride) windows, the odd pixel last."""
    totals = [before + after for before, after in node.attributes["padding"]]
    sizes = [node.shape[axis] for axis in _spatial_axes(graph, node)]
    wholes = [graph.shapes[node.inputs[0]][axis] for axis in _spatial_axes(graph, node)]
    strides = node.attributes["stride"]
    return all(
        size == -(-whole // stride) and before == total // 2
        for size, whole, stride, total, (before, _) in zip(
            sizes, wholes, strides, totals, node.attributes["padding"], strict=True
        )
    )


def _spatial_axes(graph: Graph, node: Node) -> list[int]:
    """The axes of a node's input beside the batch and the channels."""
    rank = len(graph.shapes[node.inputs[0]])
    return [axis for axis in range(rank) if axis not in (0, node.attributes["channels"] % rank)]


IGNORED = ("channels", "momentum", "operation", "arguments", "shape", "keep", "rate")


def _comparable(graph: Graph, node: Node) -> dict[str, Any]:
    """The attributes that make a function, and the size of the kernel."""
    attributes = {key: value for key, value in node.attributes.items() if key not in IGNORED}
    if attributes.get("over") != "batch":  # the others have one way to run
        attributes.pop("training", None)
    for key in ("stride", "dilation", "window", "size"):
        if isinstance(attributes.get(key), (list, tuple)):
            attributes[key] = tuple(attributes[key])
    for key in ("padding", "amounts"):
        if key in attributes:
            attributes[key] = tuple(tuple(pair) for pair in attributes[key])
    if node.kind == "pool" and not any(map(any, attributes["padding"])):
        attributes.pop("padding_value", None), attributes.pop("count_padding", None)
    if isinstance(node.attributes.get("channels"), tuple):
        attributes["axes"] = node.attributes["channels"]
    if node.kind == "activation":
        used = {"softmax": "axis", "log_softmax": "axis", "leaky_relu": "slope", "elu": "slope"}.get(
            attributes.get("function", "")
        )
        attributes = {key: value for key, value in attributes.items() if key in ("function", used)}
    if node.kind in ("convolution", "linear") and "kernel" in node.weights:
        attributes["kernel"] = graph.weight(node, "kernel").shape
    if node.kind == "convolution" and attributes.get("kernel"):
        attributes["kernel"] = attributes["kernel"][2:]
    return attributes


def _same_reach(alignment: Alignment, a: Node, b: Node) -> bool:
    """Whether two paddings differ in pixels that no window reaches alone."""
    reaches = []
    for graph, node in ((alignment.a, a), (alignment.b, b)):
        attributes, before = node.attributes, graph.shapes[node.inputs[0]]
        axes = _spatial_axes(graph, node)
        window = attributes.get("window") or graph.weight(node, "kernel").shape[2:]
        dilation = attributes.get("dilation") or (1,) * len(axes)
        reach = []
        for i, axis in enumerate(axes):
            last = (node.shape[axis] - 1) * attributes["stride"][i] + dilation[i] * (window[i] - 1) + 1
            reach.append((attributes["padding"][i][0], last - before[axis] - attributes["padding"][i][0]))
        reaches.append(reach)
    return reaches[0] == reaches[1]


def _scalings(alignment: Alignment, a: Node, b: Node, weights: Mapping[str, np.ndarray]) -> list[tuple[str, tuple[Any, Any]]]:
    """The factors and offsets of two chains of arithmetic, B's with `weights`."""
    told: list[tuple[str, tuple[Any, Any]]] = []
    lines = []
    for graph, node, given in ((alignment.a, a, None), (alignment.b, b, weights)):
        shape = graph.shapes[node.inputs[0]]
        zero, one = (graph.apply(node, [np.full(shape, float(value))], given) for value in (0, 1))
        lines.append((_numbers(one - zero), _numbers(zero)))
    for words, pair in zip(("factor", "offset"), zip(*lines, strict=True), strict=True):
        ours, theirs = (np.resize(values, max(map(len, pair))) for values in pair)
        if not np.allclose(ours, theirs, rtol=1e-9, atol=1e-12):
            told.append((words, (_short(pair[0]), _short(pair[1]))))
    return told


def _numbers(array: np.ndarray) -> list[float]:
    """The numbers of an array, each once, in their order."""
    return [float(number) for number in dict.fromkeys(np.round(array.ravel(), 12).tolist())]


def _short(numbers: Sequence[float]) -> str:
    return ", ".join(f"{number:.4g}" for number in numbers[:4]) + (", …" if len(numbers) > 4 else "")


def grouped(findings: Sequence[Finding]) -> list[Finding]:
    """The findings, those with the same fault in several operations as one, where the first of them is."""
    groups: dict[Any, list[Finding]] = {}
    for finding in findings:
        alone = finding.attribute in ("operands", "left out", "added", "place")
        key = (finding.kind, finding.attribute, repr(finding.values), finding.operations if alone else None)
        groups.setdefault(key, []).append(finding)
    return [
        replace(first, others=first.others + tuple(o.operations for o in rest), difference=_largest([first, *rest]))
        for first, *rest in groups.values()
    ]


def _largest(findings: Sequence[Finding]) -> float:
    return max((finding.difference for finding in findings), key=lambda value: math.inf if math.isnan(value) else value)
