"""The house: data flows down. Who imports whom, read off the sources; nothing is run.

CONTRIBUTING.md has the same in words.
"""

import ast
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FRAMEWORKS = {
    "torch": {"torch", "torchvision", "torch_impl"},
    "keras": {"keras", "tensorflow", "jax", "keras_impl"},
}
ABOVE = {"benchmarks", "parity_tests"}
FORBIDDEN = {  # package: what none of its files imports, not even inside a function
    "shared": FRAMEWORKS["torch"] | FRAMEWORKS["keras"] | {"twins"} | ABOVE,
    "torch_impl": FRAMEWORKS["keras"] | {"twins"} | ABOVE,
    "keras_impl": FRAMEWORKS["torch"] | {"twins"} | ABOVE,
    "twins": FRAMEWORKS["torch"] | FRAMEWORKS["keras"] | ABOVE,  # but for `STARTS`
}
STARTS = "twins.backends"  # by name, through importlib: the only one
BY_NAME = ("import_module", "__import__")  # functions that import a module by its name
LONGEST = 60  # lines of a function


def modules(package):
    """{dotted name: parsed source} of a package's files."""
    paths = sorted((ROOT / package).rglob("*.py"))
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in paths]
    return dict(zip(names, (ast.parse(path.read_text(encoding="utf-8")) for path in paths), strict=True))


def imports(name, tree, is_package):
    """The dotted names that a module imports, relative ones resolved; "a.b" for `from a import b`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = name.split(".")
                parts = parts[: len(parts) - node.level + is_package]
                base = ".".join([*parts, *([node.module] if node.module else [])])
            yield from (f"{base}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", "")) in BY_NAME:
            arguments = [*node.args[:1], *(keyword.value for keyword in node.keywords if keyword.arg == "name")]
            yield from (argument.value for argument in arguments if isinstance(argument, ast.Constant))


def graph(package):
    """{module: the modules that it imports, of any package of ours}."""
    trees = {name: tree for room in FORBIDDEN for name, tree in modules(room).items()}
    packages = {name for name in trees if (ROOT / Path(*name.split(".")) / "__init__.py").exists()}
    edges = {}
    for name in modules(package):
        edges[name] = set()
        for imported in imports(name, trees[name], name in packages):
            target = imported if imported in trees else imported.rpartition(".")[0]
            if target in trees and target != name:
                edges[name].add(target)
    return edges


@pytest.mark.parametrize("package", FORBIDDEN)
def test_nothing_is_imported_from_above_or_beside(package):
    climbs = [
        f"{name} imports {imported}"
        for name, tree in modules(package).items()
        for imported in imports(name, tree, (ROOT / Path(*name.split(".")) / "__init__.py").exists())
        if imported.split(".")[0] in (ABOVE if name == STARTS else FORBIDDEN[package])
    ]
    assert climbs == []


@pytest.mark.parametrize(
    "line, imported",
    [
        ("import torch.nn", "torch.nn"),
        ("def f(): from torch import nn", "torch.nn"),
        ("from ..compare import run", "twins.compare.run"),
        ("from . import output", "twins.cli.output"),
        ("importlib.import_module('torch')", "torch"),
        ("import_module(name='torch')", "torch"),
        ("__import__('torch')", "torch"),
    ],
)
def test_every_way_to_import_is_seen(line, imported):
    assert imported in set(imports("twins.cli.show", ast.parse(line), False))


def rows(package):
    """The files in each row of the table in CONTRIBUTING.md that has a package."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    table = next(part for part in text.split("\n### ") if f"`{package}`" in part.splitlines()[0]).partition("\n## ")[0]
    return [re.findall(r"`(\w+)`", line.split("|")[1]) for line in table.splitlines() if line.startswith("| `")]


@pytest.mark.parametrize("package", FORBIDDEN)
def test_contributing_names_every_file(package):
    files = {path.stem for path in (ROOT / package).glob("[a-z]*.py")}
    named = [name for row in rows(package) for name in row]
    assert len(named) == len(set(named)) and files <= set(named), package
    other = {"torch_impl": "keras_impl", "keras_impl": "torch_impl"}.get(package, package)  # these two share a table
    assert not [name for name in named if name not in files and not (ROOT / other / f"{name}.py").exists()]


@pytest.mark.parametrize("package", FORBIDDEN)
def test_a_file_imports_files_of_its_row_and_above(package):
    place = {name: number for number, row in enumerate(rows(package)) for name in row}
    below = [
        f"{name} imports {imported}"
        for name, edges in graph(package).items()
        for imported in edges
        if imported.startswith(f"{package}.") and {name, imported} <= {f"{package}.{file}" for file in place}
        and place[imported.removeprefix(f"{package}.")] > place[name.removeprefix(f"{package}.")]
    ]  # fmt: skip
    assert not below


def test_only_backends_starts_a_framework():
    """The frameworks' names stand in no other import of the application, and in this one."""
    found = set(imports(STARTS, modules("twins")[STARTS], False))
    assert {"torch_impl", "keras_impl"} <= found


@pytest.mark.parametrize("package", FORBIDDEN)
def test_no_files_import_each_other_in_a_circle(package):
    edges = graph(package)

    def visit(name, path):
        assert name not in path, " -> ".join([*path[path.index(name) :], name])
        for other in sorted(edges.get(name, ())):
            if other.split(".")[0] == package and not name.startswith(f"{other}."):  # a package's own __init__ is above it
                visit(other, [*path, name])

    for name in edges:
        visit(name, [])


def test_functions_fit_on_a_screen():
    long = [
        f"{name}.{node.name}: {node.end_lineno - node.lineno + 1} lines"
        for package in (*FORBIDDEN, "benchmarks")
        for name, tree in modules(package).items()
        for node in ast.walk(tree)
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.end_lineno - node.lineno >= LONGEST
    ]
    assert long == []


def test_functions_say_what_they_return():
    bare = [
        f"{name}.{node.name}"
        for package in FORBIDDEN
        for name, tree in modules(package).items()
        for node in ast.walk(tree)
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.returns is None
    ]
    assert bare == []


def test_matplotlib_is_set_up_in_one_place():
    users = {
        name
        for package in (*FORBIDDEN, "benchmarks")
        for name, tree in modules(package).items()
        if any(i.startswith(("matplotlib.figure", "matplotlib.pyplot", "matplotlib.use")) for i in imports(name, tree, False))
    }
    assert users == {"twins.plots"}


def test_every_package_is_installed_with_its_types():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    installed = set(project["tool"]["setuptools"]["packages"])
    assert installed == {
        ".".join(path.parent.relative_to(ROOT).parts) for package in FORBIDDEN for path in (ROOT / package).rglob("__init__.py")
    }
    assert all((ROOT / package / "py.typed").exists() for package in FORBIDDEN)
    data = project["tool"]["setuptools"]["package-data"]
    assert all("py.typed" in data[package] for package in FORBIDDEN)
