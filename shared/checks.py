"""What the values in a JSON file must be, and error messages for those that are not."""

import difflib
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple


class Error(ValueError):
    """A user's mistake: the message says where it is and what was expected."""


class Value(NamedTuple):
    """What the value of a key must be."""

    accepts: Callable[[Any], Any]  # truthy for a valid value
    words: str  # the same in English: "expected …"
    schema: dict[str, Any]  # the same as JSON Schema, as far as it can be expressed there


def whole(least: int) -> Value:
    """A whole number of at least `least`."""
    return Value(
        lambda v: type(v) is int and v >= least,
        f"a whole number of at least {least}",
        {"type": "integer", "minimum": least},
    )


def one_of(*values: Any) -> Value:
    """One of these values, which are all of one type."""
    return Value(
        lambda v: v in values and type(v) is type(values[0]),
        "one of " + ", ".join(json.dumps(v) for v in values),
        {"enum": list(values)},
    )


def is_positive(value: Any) -> bool:
    """Whether a value is a finite number above 0."""
    return type(value) in (int, float) and 0 < value < math.inf


def are_counts(values: Iterable[Any]) -> bool:
    """Whether all values are whole numbers above 0."""
    return all(type(v) is int and v > 0 for v in values)


def are_numbers(value: Any) -> bool:
    """Whether a value is a list of finite numbers."""
    return type(value) is list and all(type(n) in (int, float) and math.isfinite(n) for n in value)


POSITIVE = Value(is_positive, "a number above 0", {"type": "number", "exclusiveMinimum": 0})
FRACTION = Value(
    lambda v: type(v) in (int, float) and 0 <= v < 1,
    "a number of at least 0, below 1",
    {"type": "number", "minimum": 0, "exclusiveMaximum": 1},
)
BOOLEAN = Value(lambda v: type(v) is bool, "one of true, false", {"type": "boolean"})
TEXT = Value(lambda v: type(v) is str, "a string", {"type": "string"})
NAME = Value(
    lambda v: type(v) is str and re.fullmatch(r"[A-Za-z0-9_.-]+", v),
    "a word of letters, digits, dots, hyphens and underscores",
    {"type": "string", "pattern": "^[A-Za-z0-9_.-]+$"},
)


def nearest(word: object, words: Iterable[str], cutoff: float = 0.6) -> str:
    """`, did you mean 'x'?` with the nearest of the words, or an empty string if none is near, by difflib's ratio."""
    near = difflib.get_close_matches(str(word), list(words), n=1, cutoff=cutoff)
    return f", did you mean {near[0]!r}?" if near else ""


def first_few(names: Sequence[str]) -> str:
    """The names, or the first three of them and how many more there are."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def check_keys(given: Mapping[str, Any], needed: str, optional: str, values: Mapping[str, Value]) -> None:
    """Raise `Error` if a key is unknown or missing, or its value is not what `values` says.

    `needed` and `optional` are keys separated by spaces.
    """
    known = needed.split() + optional.split()
    for key in given:
        if key not in known:
            near = nearest(key, known, 0.75)  # a typo: two keys that are less alike than that mean different things
            raise Error(f"unknown key {key!r}{near or '; expected ' + (', '.join(known) or 'none but name and type')}")
    missing = [repr(key) for key in needed.split() if key not in given]
    if missing:
        raise Error(f"the keys {', '.join(missing)} are missing" if missing[1:] else f"the key {missing[0]} is missing")
    for key, value in given.items():
        if not values[key].accepts(value):
            raise Error(f"{key!r} is {json.dumps(value)[:60]}, expected {values[key].words}")
