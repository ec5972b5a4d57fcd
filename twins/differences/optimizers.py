"""The frameworks' own optimisers for `twins diff --train`, and how the one of B's differs from A's on the same gradients."""

import ast
import importlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from shared.checks import Error, nearest

from .. import backends, ladder
from .blame import Finding

NAMES = {  # {setting: (in PyTorch, in Keras)}
    "rate": ("lr", "learning_rate"),
    "momentum": ("momentum", "momentum"),
    "nesterov": ("nesterov", "nesterov"),
    "weight decay": ("weight_decay", "weight_decay"),
    "epsilon": ("eps", "epsilon"),
    "beta 1": ("betas", "beta_1"),
    "beta 2": ("betas", "beta_2"),
}
SINGLE = 1e-6  # what Keras's settings, which it keeps in single precision, may change


class Optimizer(NamedTuple):
    """An optimiser's class and what it is made with."""

    framework: str  # "torch" or "keras"
    kind: Any
    rate: float
    options: dict[str, Any]

    def steps(
        self, weights: Sequence[np.ndarray], gradients: Sequence[Sequence[np.ndarray]]
    ) -> list[np.ndarray]:  # fmt: skip
        """The weights after steps with these gradients, all arrays in float64."""
        taken = _submission(self.framework).optimise(self.kind, self.options, weights, gradients, [self.rate] * len(gradients))
        last: list[np.ndarray] = taken[-1]
        return last

    @property
    def settings(self) -> dict[str, Any]:
        """What it is made with, in common terms, what was left out at its default."""
        given = dict(_submission(self.framework).settings(self.kind, self.options, self.rate))
        keras = self.framework == "keras"
        named = {setting: given[names[keras]] or 0 for setting, names in NAMES.items() if names[keras] in given}
        named |= {f"beta {place}": beta for place, beta in enumerate(given.get("betas", ()), start=1)}
        return {"kind": self.kind.__name__} | named | {"rate": self.rate}


def _submission(framework: str) -> Any:
    return importlib.import_module(".submission", backends.recorder(framework).__package__)


def read(given: Any, framework: str, option: str) -> Optimizer:
    """An optimiser of a framework: one that exists, or a text as `SGD(lr=0.1, momentum=0.9)`. `option` is for messages.

    Raises `Error` for what is not an optimiser, and for a learning rate that is not a number.
    """
    module = _submission(framework)
    if isinstance(given, module.OPTIMIZER):
        kind, options = type(given), module.options(given)
    else:
        kind, options = _parsed(f"{given}", module, option)
    rate = options.pop(module.RATE, None)
    if not isinstance(rate, (int, float)):
        raise Error(f"{option}: {module.RATE} is {'not given' if rate is None else f'{rate}'[:60]}, expected a number")
    found = Optimizer(framework, kind, rate, options)
    try:
        _ = found.settings
    except (TypeError, ValueError) as error:
        raise Error(f"{option}: {kind.__name__}: {error}") from None
    return found


def _parsed(text: str, module: Any, option: str) -> tuple[Any, dict[str, Any]]:
    """(class, {setting: value}) of a text."""
    expected = f"{option} is {text}, expected one of {module.FRAMEWORK}'s with its settings by name: SGD({module.RATE}=0.1)"
    try:
        call = ast.parse(text, mode="eval").body
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name) or call.args:
            raise Error(expected)
        options = {f"{each.arg}": ast.literal_eval(each.value) for each in call.keywords}
    except (SyntaxError, ValueError):
        raise Error(expected) from None
    kinds = {name: kind for name, kind in vars(module.OPTIMIZERS).items() if isinstance(kind, type)}
    if call.func.id not in kinds or not issubclass(kinds[call.func.id], module.OPTIMIZER):
        raise Error(f"{option}: {module.FRAMEWORK} has no optimiser {call.func.id!r}{nearest(call.func.id, kinds)}")
    return kinds[call.func.id], options


def differing(
    a: Optimizer, b: Optimizer, weights: Sequence[np.ndarray], gradients: Sequence[Sequence[np.ndarray]]
) -> list[Finding]:
    """How B's optimiser moves A's weights otherwise than A's does, by A's gradients."""
    ends = [np.concatenate([array.ravel() for array in each.steps(weights, gradients)]) for each in (a, b)]
    start = np.concatenate([array.ravel() for array in weights])
    difference = ladder.relative(ends[0] - start, ends[1] - start)
    if difference <= (ladder.TOLERANCES["float64"]["gradients"] if a.framework == b.framework else SINGLE):
        return []
    one, two = a.settings, b.settings
    told = [(key, (one[key], two[key])) for key in one if key in two and not _close(one[key], two[key])]
    if "kind" in dict(told):
        told = told[:1]
    if not told and a.framework != b.framework:
        told = _by_framework(one, a.framework == "torch")
    told = told or [("update", ("A's", "another"))]
    return [_finding(attribute, values, difference, b.framework == "keras") for attribute, values in told]


def _close(one: Any, two: Any) -> bool:
    return one == two or (isinstance(one, float) and isinstance(two, float) and abs(one - two) <= SINGLE * abs(one))


def _by_framework(settings: Mapping[str, Any], torch_first: bool) -> list[tuple[str, tuple[Any, Any]]]:
    """What the two frameworks do otherwise with the same settings."""
    told: list[tuple[str, tuple[Any, Any]]] = []
    if settings.get("weight decay") and settings["kind"] != "AdamW":
        told.append(("weight decay", ("in the gradient", "beside it")))
    if settings["kind"].startswith(("Adam", "NAdam", "Nadam")):
        told.append(("epsilon", ("added after the correction of the second moment", "added before it")))
    return told if torch_first else [(attribute, values[::-1]) for attribute, values in told]


def _finding(attribute: str, values: tuple[Any, Any], difference: float, keras: bool) -> Finding:
    """A finding, with its remedy."""
    wanted, trap = values[0], {"weight decay": "weight-decay", "epsilon": "adam-epsilon"}.get(attribute)
    if attribute == "weight decay" and isinstance(wanted, str):
        beside = "AdamW, or shrink the weights before each step"
        inside = "weight_decay=0, and keras.regularizers.L2 of half of it on the weights" if keras else "add it to the gradient"
        remedy = inside if wanted == "in the gradient" else beside
    elif attribute == "epsilon" and isinstance(wanted, str):
        remedy = f"an optimizer with its epsilon {wanted}"
    elif attribute in NAMES:
        remedy = f"{NAMES[attribute][keras]}={wanted}"
        trap = trap if attribute == "epsilon" else None
    else:
        remedy = f"use {wanted}" if attribute == "kind" else ""
    return Finding((None, None), "optimizer", attribute, values, difference, remedy=remedy, trap=trap)
