"""The parts of an exercise: the reference, the cases on which code is judged, and the known mistakes."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from shared.spec import Spec

from .arithmetic import State

Function = Callable[..., Any]


class Suspect(NamedTuple):
    """A known mistake.

    `message` may name measured numbers: {ratio}, theirs over ours, in the middle; {n}, the values of a channel; {difference}.
    `flaw` is what the exercise's `function` does about it, by default the name.
    """

    name: str
    message: str
    trap: str | None = None
    flaw: Any = None


DETACHED = Suspect(  # in any exercise that compares gradients
    "detached",
    "the output agrees, but no gradient arrives: the {quantity} is zero. Something on the way to the output cuts it off: "
    "detach(), .data, no_grad() or stop_gradient, or a step that leaves {framework}, through NumPy or float",
)
IN_PLACE = Suspect(
    "in-place",
    "the output agrees, but the backward pass fails: you change in place, by += or a function ending in _, a tensor whose "
    "values the gradient needs, such as the input of a convolution. Make a new one: y = x + y",
)
RANDOM = Suspect(
    "random",
    "your output in training is random: a second pass over the same images gives another. Is there a dropout or noise in it? "
    "The reference has none",
)


class Case(NamedTuple):
    """The arguments of a constructor, and the shape of the images (batch, channels, height, width)."""

    arguments: tuple[Any, ...]
    shape: tuple[int, int, int, int]


@dataclass(frozen=True)
class Layer:
    """A class to be written: a layer or a block.

    `reference` is ours, as "layers.Conv", and `ours` gives its arguments from those of a case. `function(state, x, training,
    arguments, flaw)` is the layer in NumPy, right if the flaw is None, or with a mistake; it updates the running statistics in
    `state`. `shapes(arguments, flaw)`, for mistakes that change the weights, gives {name: shape}.
    """

    name: str
    reference: str
    cases: Sequence[Case]
    function: Callable[[State, np.ndarray, bool, tuple[Any, ...], Any], np.ndarray]
    suspects: Sequence[Suspect]
    ours: Callable[..., tuple[Any, ...]] = lambda *arguments: arguments
    shapes: Callable[[tuple[Any, ...], Any], dict[str, tuple[int, ...]]] | None = None
    aliases: Mapping[str, str] = field(default_factory=dict)  # {beginning of a name: what it is called in the statement}


@dataclass(frozen=True)
class Tensors:
    """A function of tensors to be written.

    `function(arguments, flaw)` is it in NumPy, with PyTorch's axes. `gradients(arguments, projection)`, if gradients are
    compared, gives {number of an argument: gradient}. `layouts` are those of the arguments and of the output, see `call` in
    each package's `submission`.
    """

    name: str
    cases: Sequence[tuple[Any, ...]]
    function: Callable[[tuple[Any, ...], Any], Any]
    suspects: Sequence[Suspect]
    layouts: Sequence[str]
    layout: str = ""
    gradients: Callable[[tuple[Any, ...], np.ndarray], dict[int, np.ndarray]] | None = None
    outputs: Sequence[str] = ("output",)
    arguments: Sequence[str] = ()


@dataclass(frozen=True)
class Draw:
    """A function that draws a kernel, to be written. `moments(shape, flaw)` gives its standard deviation and kurtosis."""

    name: str
    shapes: Sequence[tuple[int, int, int, int]]
    moments: Callable[[tuple[int, ...], Any], tuple[float, float]]
    suspects: Sequence[Suspect]


@dataclass(frozen=True)
class Optimizer:
    """An optimiser to be written. `function(weight, gradient, memory, rate, step, options, flaw)` gives the new weight."""

    name: str
    cases: Sequence[dict[str, Any]]  # options
    rates: Sequence[float]
    scale: float  # the gradients' smallest size over their largest
    function: Callable[..., np.ndarray]
    suspects: Sequence[Suspect]


@dataclass(frozen=True)
class Network:
    """A spec to be written. The flaw of a suspect is a function that makes the mistake in a copy of the reference."""

    spec: Callable[[], Spec]
    suspects: Sequence[Suspect]
    size: tuple[int, int]


Exercise = Layer | Tensors | Draw | Optimizer | Network


def without(spec: Spec, *names: str) -> Spec:
    """A spec without some layers."""
    return spec | {"layers": [layer for layer in spec["layers"] if layer["name"] not in names]}


def changed(spec: Spec, names: Sequence[str] | str, **options: Any) -> Spec:
    """A spec some of whose layers have other options; None takes one away."""
    wanted = names.split() if isinstance(names, str) else names
    layers = []
    for layer in spec["layers"]:
        new = layer | options if layer["name"] in wanted else layer
        layers.append({key: value for key, value in new.items() if value is not None})
    return spec | {"layers": layers}
