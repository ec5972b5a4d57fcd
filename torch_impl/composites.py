"""Functions of one tensor that code writes in several elementwise operators, as silu in x * torch.sigmoid(x)."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch.fx import Node

from shared.operations import GRID, known_function

from .terms import base, shape

ELEMENTWISE = frozenset(
    "abs add clamp clamp_max clamp_min div elu erf exp expm1 hardsigmoid hardtanh log log1p maximum minimum mul neg pow "
    "reciprocal relu relu6 rsub sigmoid softplus sqrt square sub tanh".split()
)
MOST = 14  # operators in a function

Call = Callable[[Node, Mapping[Node, Any]], Any]  # what a node's operator makes of the values of others


class Composite(NamedTuple):
    """A function in several operators."""

    nodes: list[Node]  # in the order in which they run; the last has the result
    root: Node  # what it is a function of
    attributes: dict[str, Any]


def composites(
    nodes: Sequence[Node], static: Mapping[Node, torch.Tensor], weights: Collection[Node], call: Call
) -> list[Composite]:
    """The known functions among nodes in order, of which `static` do not depend on the network's input."""
    order = {node: place for place, node in enumerate(nodes)}
    found: list[Composite] = []
    claimed: set[Node] = set()
    for node in reversed(nodes):
        if base(node) not in ELEMENTWISE or node in claimed or not _is_floating(node):
            continue
        for root, members in _regions(node, order, static, weights, claimed):
            if members[1:] and not _leaks(members, node):
                attributes = _function(root, members, static, call)
                if attributes:
                    found.append(Composite(members, root, attributes))
                    claimed |= set(members)
                    break
    return found


def _regions(
    node: Node, order: Mapping[Node, int], static: Collection[Node], weights: Collection[Node], claimed: Collection[Node]
) -> Iterator[tuple[Node, list[Node]]]:
    """(node, the elementwise nodes that make the result of it and of numbers alone), nearest first."""
    members, front = [node], {each for each in node.all_input_nodes if each not in static}
    for _ in range(MOST):
        numbers = [each for each in members[-1].all_input_nodes if each in static]
        if any(each in weights or shape(each) not in ((), (1,)) for each in numbers):
            return
        if len(front) == 1 and shape(*front) == shape(node):
            yield *front, sorted(members, key=order.__getitem__)
        before = max(front, key=lambda each: order.get(each, -1), default=None)
        if before is None or before not in order or base(before) not in ELEMENTWISE or before in claimed:
            return
        front = front - {before} | {each for each in before.all_input_nodes if each not in static}
        members.append(before)


def _is_floating(node: Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, torch.Tensor) and value.is_floating_point()


def _leaks(members: Sequence[Node], last: Node) -> bool:
    """Whether other nodes read what is within a function, or the function writes on what is outside."""
    inside = {*members} - {last}
    written = [node.args[0] for node in members if node.target._schema.is_mutable]
    return any({*node.users} - {*members} for node in inside) or any(each not in inside for each in written)


def _function(root: Node, members: Sequence[Node], static: Mapping[Node, torch.Tensor], call: Call) -> dict[str, Any] | None:
    """The known function that nodes make of `GRID`, or None."""
    values: dict[Node, Any] = dict(static) | {root: torch.tensor(GRID)}
    with torch.no_grad():
        for node in members:
            values[node] = call(node, values)
    return known_function(values[members[-1]].numpy())
