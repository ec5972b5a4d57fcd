"""A class of both packages, read off the sources: line by line beside each other, with the words that differ.

Nothing is imported, so that no framework starts.
"""

import ast
import difflib
import functools
import html
import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from shared.checks import Error, nearest

ROOT = Path(__file__).parents[1]
FRAMEWORKS = {"torch_impl": "PyTorch", "keras_impl": "Keras"}
LAYERS = "layers"  # the file in which the packages differ
FILES = ("blocks", "preactivation", "inception", "network", "feature_maps", LAYERS)

Words = list[tuple[str, bool]]  # a line in parts: (text, whether the other framework's differs there)


class Row(NamedTuple):
    """A line of each framework, or of one alone."""

    same: bool
    torch: tuple[int, Words] | None  # number in its file, and the line
    keras: tuple[int, Words] | None


class Pair(NamedTuple):
    """What both packages call by one name, or only one of them has."""

    name: str
    files: tuple[str, str]  # PyTorch's and Keras's, from the root of the project
    rows: list[Row]


class Module(NamedTuple):
    """A file of a package."""

    path: str
    lines: list[str]
    definitions: dict[str, ast.stmt]
    imported: dict[str, str]  # name: the file of the package that it is from


@functools.cache
def module(package: str, file: str) -> Module:
    """A file of a package, parsed."""
    path = f"{package}/{file}.py"
    text = (ROOT / path).read_text(encoding="utf-8")
    body = ast.parse(text).body
    definitions: dict[str, ast.stmt] = {}
    imported: dict[str, str] = {}
    for node in body:
        targets = getattr(node, "targets", None) or [getattr(node, "target", None)]
        for name in [getattr(node, "name", None), *(getattr(target, "id", None) for target in targets)]:
            if name:
                definitions[name] = node
        if isinstance(node, ast.ImportFrom) and node.level == 1:
            imported |= dict.fromkeys((alias.name for alias in node.names), node.module or "")
    return Module(path, text.splitlines(), definitions, imported)


def names() -> dict[str, tuple[str, str]]:
    """{name: (file, name of the class or function)} of all that `read` finds: layers' types of specs come first."""
    definitions = module("torch_impl", "network").definitions
    table = definitions["TYPES"]
    assert isinstance(table, ast.AnnAssign) and isinstance(table.value, ast.Dict)
    found = {}
    for key, value in zip(table.value.keys, table.value.values, strict=True):
        assert isinstance(key, ast.Constant) and isinstance(value, ast.Attribute) and isinstance(value.value, ast.Name)
        found[str(key.value)] = (value.value.id, value.attr)
    for kinds in ((ast.ClassDef, ast.Assign), (ast.FunctionDef,)):  # a class before a function of the same letters
        for file in FILES:
            for name, node in module("torch_impl", file).definitions.items():
                if isinstance(node, kinds) and name in module("keras_impl", file).definitions and not name.isupper():
                    found.setdefault(name, (file, name))
    return found


def find(name: str) -> tuple[str, str]:
    """(file, name) of a block, a layer or a function. Raises `Error`, with the nearest name, if there is none.

    `name` is a class, as BasicBlock, or a layer's type of a spec, as basic; whatever the case, and with or without underscores.
    """
    known = names()
    plain: dict[str, tuple[str, str]] = {}
    for key, place in known.items():
        plain.setdefault(_plain(key), place)
    if _plain(name) not in plain:
        near = nearest(name, known) or nearest(_plain(name), plain)
        types = [key for key, (file, _) in known.items() if file != LAYERS and key.islower()][:8]
        raise Error(f"no block or layer is called {name!r}{near or '; there are ' + ', '.join(types) + ' and others'}")
    return plain[_plain(name)]


def _plain(name: str) -> str:
    return re.sub("[_-]", "", name).lower()


def read(name: str) -> tuple[Pair, list[Pair]]:
    """A class of both packages, and what it needs of the two `layers.py`. Raises `Error` as `find`."""
    file, symbol = find(name)
    needed = dict.fromkeys(itertools.chain.from_iterable(_layers(package, file, symbol) for package in FRAMEWORKS))
    return pair(file, symbol), [pair(LAYERS, layer) for layer in needed if (file, symbol) != (LAYERS, layer)]


def _layers(package: str, file: str, symbol: str) -> list[str]:
    """The classes and functions of a package's `layers.py` that a definition calls, itself or through functions."""
    found: dict[str, None] = {}
    seen = set()

    def visit(file: str, symbol: str) -> None:
        own = module(package, file)
        node = own.definitions.get(symbol)
        if (file, symbol) in seen or not node:
            return
        seen.add((file, symbol))
        if file == LAYERS:
            found[symbol] = None
        for called, through in _calls(node):
            place = through or (file if called in own.definitions else own.imported.get(called))
            if place and (place == LAYERS or isinstance(module(package, place).definitions.get(called), ast.FunctionDef)):
                visit(place, called)

    visit(file, symbol)
    return list(found)


def _calls(node: ast.stmt) -> Iterator[tuple[str, str | None]]:
    """(name, file if it is called as one's attribute) of what a definition calls."""
    for call in ast.walk(node):
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name):
            yield call.func.id, None
        elif isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and isinstance(call.func.value, ast.Name):
            if call.func.value.id in FILES:
                yield call.func.attr, call.func.value.id


def pair(file: str, symbol: str) -> Pair:
    """A class or function of both packages, line by line."""
    texts = []
    for package in FRAMEWORKS:
        own = module(package, file)
        node = own.definitions.get(symbol)
        first = node.lineno if node else 0
        texts.append([*enumerate(own.lines[first - 1 : node.end_lineno], first)] if node else [])
    return Pair(symbol, tuple(module(package, file).path for package in FRAMEWORKS), [*_rows(*texts)])  # type: ignore[arg-type]


def _rows(ours: Sequence[tuple[int, str]], theirs: Sequence[tuple[int, str]]) -> Iterator[Row]:
    left_lines, right_lines = ([text for _, text in side] for side in (ours, theirs))
    for kind, a, b, c, d in difflib.SequenceMatcher(None, left_lines, right_lines, autojunk=False).get_opcodes():
        for left, right in itertools.zip_longest(ours[a:b], theirs[c:d]):
            if kind == "equal":
                yield Row(True, (left[0], [(left[1], False)]), (right[0], [(right[1], False)]))
                continue
            one, other = _words(left[1] if left else "", right[1] if right else "")
            yield Row(False, (left[0], one) if left else None, (right[0], other) if right else None)


def _words(one: str, other: str) -> tuple[Words, Words]:
    """Two lines in parts, those marked that only one of them has; none where the lines are less alike than not."""
    split: list[list[str]] = [re.findall(r"\w+|\s+|.", line) for line in (one, other)]
    parts: tuple[Words, Words] = ([], [])
    matcher = difflib.SequenceMatcher(None, split[0], split[1], autojunk=False)
    if matcher.ratio() < 0.5:
        return [(one, False)], [(other, False)]
    for kind, a, b, c, d in matcher.get_opcodes():
        for line, words, start, end in ((parts[0], split[0], a, b), (parts[1], split[1], c, d)):
            text = "".join(words[start:end])
            if text:
                line.append((text, kind != "equal" and not text.isspace()))
    return parts


def page(title: str, pairs: Iterable[Pair]) -> str:
    """A page that needs no other file: two columns, or on a narrow screen one, with both lines where they differ."""
    sections = "\n".join(_section(one) for one in pairs)
    return PAGE.format(title=html.escape(title), sections=sections)


def _section(one: Pair) -> str:
    rows = []
    for row in one.rows:
        kind = "same" if row.same else "differs"
        rows.append(f'<tr class="{kind}">{_cells(row.torch, "torch")}{_cells(row.keras, "keras")}</tr>')
    heads = "".join(
        f'<th scope="col" colspan="2">{name} <span>{file}</span></th>'
        for name, file in zip(FRAMEWORKS.values(), one.files, strict=True)
    )
    body = "\n".join(rows)
    columns = '<col class="number"><col>' * len(one.files)
    table = f"<table>\n<colgroup>{columns}</colgroup>\n<thead><tr>{heads}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table>"
    return f"<h2>{html.escape(one.name)}</h2>\n{table}"


def _cells(line: tuple[int, Words] | None, side: str) -> str:
    if line is None:
        return f'<td class="number {side} none"></td><td class="{side} none"></td>'
    number, words = line
    text = "".join(f"<mark>{html.escape(part)}</mark>" if marked else html.escape(part) for part, marked in words)
    return f'<td class="number {side}">{number}</td><td class="{side}"><code>{text}</code></td>'


PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; --text: #1f2328; --back: #fff; --dim: #59636e; --line: #d1d9e0;
  --torch: #fff1e5; --keras: #ddf4ff; --mark: #ffd33d; }}
@media (prefers-color-scheme: dark) {{ :root {{ --text: #e6edf3; --back: #0d1117; --dim: #9198a1; --line: #3d444d;
  --torch: #3b2300; --keras: #0c2d4e; --mark: #7a5c00; }} }}
body {{ margin: 0 auto; padding: 1rem; max-width: 110rem; color: var(--text); background: var(--back);
  font: 15px/1.5 system-ui, sans-serif; }}
table {{ width: 100%; border-collapse: collapse; table-layout: fixed; border: 1px solid var(--line); }}
th {{ padding: .3rem .6rem; text-align: left; border-bottom: 1px solid var(--line); }}
th span, .number {{ color: var(--dim); font-weight: normal; }}
td {{ padding: 0 .6rem; vertical-align: top; }}
code {{ display: block; padding-left: 4ch; text-indent: -4ch; font: 12.5px/1.6 ui-monospace, monospace;
  min-height: 1.6em; white-space: pre-wrap; overflow-wrap: anywhere; }}
.number {{ width: 3rem; font: 12.5px/1.6 ui-monospace, monospace; text-align: right; user-select: none; }}
.differs .torch {{ background: var(--torch); }}
.differs .keras {{ background: var(--keras); }}
mark {{ color: inherit; background: var(--mark); border-radius: 2px; }}
@media (max-width: 60rem) {{
  body {{ padding: .5rem; }}
  table, tbody {{ display: block; }}
  colgroup, thead, .number, .same .keras, td.none {{ display: none; }}
  tr, td {{ display: block; padding: 0 .2rem; overflow: hidden; }}
  code {{ font-size: 12px; }}
  .differs td::before {{ float: right; color: var(--dim); font-size: 11px; padding-left: .5rem; }}
  .differs td.torch::before {{ content: "PyTorch"; }}
  .differs td.keras::before {{ content: "Keras"; }}
}}
</style>
</head>
<body>
<h1>{title}</h1>
<p>PyTorch and Keras beside each other; words that differ are <mark>marked</mark>.</p>
{sections}
</body>
</html>
"""
