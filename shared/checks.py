"""What the values in a JSON file must be, and error messages for those that are not."""

import difflib
import json
import re
import sys
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from . import limits


class Error(ValueError):
    """A user's mistake: the message says where it is and what was expected."""

    status = 2  # of a command that ends with it


class RunError(Error):
    """A valid request that cannot be carried out: the loss is NaN, or a batch is too small to normalise by."""

    status = 1


class LostProcessError(RunError):
    """Another of the processes of a run has ended or cannot be reached, so that this one cannot go on."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error, of any framework, means that memory has run out."""
    # By name, since no framework is imported here; PyTorch has no exception class for CPU memory.
    words = f"{type(error).__name__} {error}".lower().replace(" ", "").replace("_", "")
    signs = ("outofmemory", "resourceexhausted", "defaultcpuallocator", "allocfailed", "badalloc")
    return isinstance(error, MemoryError) or any(sign in words for sign in signs)


class Value(NamedTuple):
    """What the value of a key must be."""

    accepts: Callable[[Any], Any]  # truthy for a valid value
    words: str  # the same in English: "expected …"
    schema: dict[str, Any]  # the same as JSON Schema, as far as it can be expressed there


def whole(least: int, most: int = limits.WHOLE) -> Value:
    """A whole number of at least `least`, and at most `most`."""
    return Value(
        lambda v: type(v) is int and least <= v <= most,
        f"a whole number of at least {least}" if most == limits.WHOLE else f"a whole number from {least} to {most:,}",
        {"type": "integer", "minimum": least, "maximum": most},
    )


def one_of(*values: Any) -> Value:
    """One of these values, which are all of one type."""
    return Value(
        lambda v: v in values and type(v) is type(values[0]),
        "one of " + ", ".join(json.dumps(v) for v in values),
        {"enum": list(values)},
    )


def is_number(value: Any) -> bool:
    """Whether a value is a finite number that a float can hold."""
    return type(value) in (int, float) and abs(value) <= sys.float_info.max


def is_positive(value: Any) -> bool:
    """Whether a value is a finite number above 0."""
    return is_number(value) and value > 0


def are_counts(values: Iterable[Any]) -> bool:
    """Whether all values are whole numbers above 0, and within the limit."""
    return all(type(v) is int and 0 < v <= limits.WHOLE for v in values)


def are_numbers(value: Any) -> bool:
    """Whether a value is a list of finite numbers."""
    return type(value) is list and all(map(is_number, value))


_LARGEST = {"maximum": sys.float_info.max}
NUMBERS = {"type": "array", "items": {"type": "number", "minimum": -sys.float_info.max, **_LARGEST}}  # as `are_numbers`
POSITIVE = Value(is_positive, "a number above 0", {"type": "number", "exclusiveMinimum": 0, **_LARGEST})
FRACTION = Value(
    lambda v: type(v) in (int, float) and 0 <= v < 1,
    "a number of at least 0, below 1",
    {"type": "number", "minimum": 0, "exclusiveMaximum": 1},
)
SHARE = Value(
    lambda v: FRACTION.accepts(v) and v > 0,
    "a number above 0, below 1",
    {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1},
)
BOOLEAN = Value(lambda v: type(v) is bool, "one of true, false", {"type": "boolean"})
TEXT = Value(lambda v: type(v) is str, "a string", {"type": "string"})
NAME = Value(
    lambda v: type(v) is str and len(v) <= limits.WORD and re.fullmatch(r"[A-Za-z0-9_.-]+", v),
    f"a word of letters, digits, dots, hyphens and underscores, at most {limits.WORD}",
    {"type": "string", "pattern": "^[A-Za-z0-9_.-]+$", "maxLength": limits.WORD},
)


def nearest(word: object, words: Iterable[str], cutoff: float = 0.6) -> str:
    """`, did you mean 'x'?` with the nearest of the words, or an empty string if none is near, by difflib's ratio."""
    near = difflib.get_close_matches(str(word), list(words), n=1, cutoff=cutoff)
    return f", did you mean {near[0]!r}?" if near else ""


def shown(value: Any) -> str:
    """The beginning of a value as JSON, for a message."""
    if type(value) is int and abs(value) > 10**60:  # Python refuses to print some of these
        return "a number of more than 60 digits"
    try:
        return json.dumps(value)[:60]
    except (TypeError, ValueError, RecursionError):  # only from Python: nothing of this kind is in a JSON file
        return f"a {type(value).__name__}"


def printable(text: object) -> str:
    """A text without what a terminal would obey or cannot show: control characters, direction marks, bytes not in UTF-8.

    They become escapes, as in Python's strings; spaces and line breaks remain.
    """
    text = str(text)
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c == "\n" or unicodedata.category(c) == "Zs" else repr(c)[1:-1] for c in text)


def gigabytes(count: int) -> str:
    """A number of bytes for people: 1.5 GB, 12,000 GB."""
    return f"{count / 1e9:,.1f} GB"


def check_memory(needed: int, what: str) -> None:
    """Raise `Error` if `what`, a plural, is more bytes than there is memory for."""
    if needed > limits.memory():
        raise Error(f"{what} need {gigabytes(needed)} of memory, this machine has {gigabytes(limits.memory())}")


def check_unpacked(packed: int, unpacked: int) -> None:
    """Raise `Error` if `packed` bytes declare so much content that it would exhaust memory.

    Weights and pictures do not become `limits.RATIO` times smaller by compression, and what is small is unpacked in any case.
    """
    if unpacked > limits.UNPACKED and unpacked > limits.RATIO * packed:
        raise Error(
            f"declares {gigabytes(unpacked)} of content, more than {limits.RATIO} times its size, so it is not unpacked; "
            "if that is right, save it without compression"
        )
    check_memory(unpacked, "its contents")


def in_words(names: Sequence[str], last: str = "and") -> str:
    """The names as a list in a sentence: "one, two and three"."""
    return f" {last} ".join([", ".join(names[:-1]), names[-1]] if names[1:] else names)


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
            too_large = type(value) is int and value > limits.WHOLE
            raise Error(
                f"{key!r} is {shown(value)}, expected {f'at most {limits.WHOLE:,}' if too_large else values[key].words}"
            )
