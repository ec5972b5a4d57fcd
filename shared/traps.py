"""The traps: where PyTorch and Keras differ and a naive port goes wrong, from `traps.toml`, which has all their texts."""

import ast
import contextlib
import functools
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

from .checks import Error, nearest

ROOT = Path(__file__).parents[1]
TEXTS = Path(__file__).with_suffix(".toml")


class Trap(NamedTuple):
    """One difference between the frameworks, in words."""

    name: str
    title: str
    pytorch: str  # what PyTorch does
    keras: str  # what Keras does, on TensorFlow
    formula: str
    naive: str  # what a naive port does, and what is measured
    ours: str  # what is done here
    where: str  # the line of code that does it, as `place` reads it
    source: tuple[str, ...]
    lesson: str  # that treats it
    jax: str = "As on TensorFlow."  # what Keras does on JAX
    only: str = ""  # "tf" or "jax", if it is a trap on one of Keras's backends alone


@functools.cache
def load() -> dict[str, Trap]:
    """{name: trap} of all traps, in the order of the file."""
    tables = tomllib.loads(TEXTS.read_text(encoding="utf-8"))
    return {name: Trap(name, **table | {"source": tuple(table["source"])}) for name, table in tables.items()}


def find(name: str) -> Trap:
    """The trap of a name. Raises `Error`, with the nearest name, if there is none."""
    traps = load()
    if name not in traps:
        raise Error(f"no trap is called {name!r}{nearest(name, traps) or '; `twins traps` lists them all'}")
    return traps[name]


def place(where: str, root: Path = ROOT) -> tuple[str, int, str]:
    """(file, line number, line) of "file:symbol" or "file:symbol:words", the first line of the symbol that has the words.

    A symbol is what a file defines, as "Class.method" or "NAME". Files are below `root`. Raises `Error` if there is no such
    line.
    """
    file, symbol, words = (where + ":").split(":", 2)
    text = (root / file).read_text(encoding="utf-8")
    node = _defined(text, symbol)
    if node:
        for number, line in enumerate(text.splitlines()[node.lineno - 1 : node.end_lineno], node.lineno):
            if words.removesuffix(":") in line:
                return file, number, line.strip()
    raise Error(f"there is no {where}")


def _defined(text: str, symbol: str) -> ast.stmt | None:
    """The definition of a symbol in a Python file, or None."""
    members: list[ast.stmt] = ast.parse(text).body
    found = None
    for name in symbol.split("."):
        found = next((node for node in members if name in _names(node)), None)
        members = getattr(found, "body", [])
    return found


def _names(node: ast.stmt) -> list[str]:
    """What a statement defines."""
    targets = getattr(node, "targets", None) or [getattr(node, "target", None)]
    return [getattr(node, "name", "")] + [getattr(target, "id", "") for target in targets]


@contextlib.contextmanager
def replaced(attributes: Iterable[tuple[Any, str, Any]]) -> Iterator[None]:
    """In this context each (owner, name, value) has that value; afterwards its own again."""
    with contextlib.ExitStack() as stack:
        for owner, name, value in attributes:
            stack.enter_context(mock.patch.object(owner, name, value))
        yield
