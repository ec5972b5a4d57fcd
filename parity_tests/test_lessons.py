"""The lessons: each has its parts, and runs from its first cell to its last; the directives say what is wrong with a name.

A lesson whose first cell names `TWINS_DATA` needs data from there, and skips without.
"""

import os
import re
import resource
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LESSONS = [path for path in sorted((ROOT / "docs" / "lessons").glob("*.md")) if "\nkernelspec:" in path.read_text("utf-8")]
SECONDS = 120  # a lesson's, on two cores
lesson = pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)


def _read(path):
    jupytext = pytest.importorskip("jupytext", reason="jupytext is not installed: pip install -e '.[docs]'")
    return jupytext.read(path)


def _tag(cell):
    """The framework that a cell is tagged with, or None."""
    return next((tag for tag in ("torch", "keras") if tag in cell.metadata.get("tags", [])), None)


@lesson
def test_parts(path):
    """A lesson says what it is for and ends with three exercises of its own; its cells for one framework come in pairs."""
    notebook, text = _read(path), path.read_text(encoding="utf-8")
    opening = notebook.cells[0].source
    assert re.match(r"# .+\n\nAfter this lesson you can\n\n(- .+\n(  .+\n)*){3}\n", opening), opening
    before, _, exercises = text.partition("\n## Exercises\n")
    names = re.findall(r"^```\{exercise\} (\S+)$", exercises, re.MULTILINE)
    assert len(set(names)) == len(names) == 3 and "{exercise}" not in before
    for name in names:
        assert name.startswith(f"{path.stem}.") and (ROOT / "twins" / "exercises" / f"{name}.md").is_file(), name
    tags = [(_tag(cell), position) for position, cell in enumerate(notebook.cells) if _tag(cell)]
    for (one, first), (two, second) in zip(tags[::2], tags[1::2], strict=True):
        assert {one, two} == {"torch", "keras"} and second == first + 1, notebook.cells[first].source


@lesson
def test_is_a_notebook(path):
    """`jupytext --to notebook` makes a valid notebook of it, without outputs, and what the page shows as code is Python."""
    import nbformat

    notebook = _read(path)
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert cells and notebook.metadata.kernelspec.name == "python3"
    for cell in cells:
        assert not cell.outputs
        compile(cell.source, str(path), "exec")


@pytest.mark.long
@lesson
def test_runs(path, tmp_path):
    """All cells run, in two minutes on two cores: the time is that of the cores, whatever else they do."""
    nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed: pip install -e '.[test]'")
    pytest.importorskip("ipykernel", reason="ipykernel is not installed: pip install -e '.[docs]'")
    notebook = _read(path)
    if "TWINS_DATA" in notebook.cells[0].source and "TWINS_DATA" not in os.environ:
        pytest.skip("TWINS_DATA is not set")
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    nbclient.NotebookClient(notebook, timeout=5 * SECONDS, resources={"metadata": {"path": tmp_path}}).execute()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert 1 < seconds < 2 * SECONDS


PAGE = """
# A page

```{{code-cell}} python
:tags: [keras]

1
```

```{{code-cell}} python
:tags: [torch]

2
```

{below}
"""

HEADER = """\
---
jupytext: {text_representation: {extension: .md, format_name: myst}}
kernelspec: {name: python3, display_name: Python 3, language: python}
---
"""


@pytest.fixture
def build(tmp_path, monkeypatch):
    """A function that builds a page with some text below a pair of cells: (HTML, warnings)."""
    for module in ("myst_nb", "sphinx_design"):
        pytest.importorskip(module, reason=f"{module} is not installed: pip install -e '.[docs]'")
    monkeypatch.syspath_prepend(ROOT / "docs" / "_ext")
    from sphinx.testing.util import SphinxTestApp

    def build(below):
        (tmp_path / "conf.py").write_text("")
        (tmp_path / "index.md").write_text(HEADER + PAGE.format(below=below), encoding="utf-8")
        settings = {"extensions": ["myst_nb", "sphinx_design", "lessons"], "nb_execution_mode": "off"}
        app = SphinxTestApp(srcdir=tmp_path, confoverrides=settings, freshenv=True)
        try:
            app.build()
            return (Path(app.outdir) / "index.html").read_text(encoding="utf-8"), app.warning.getvalue()
        finally:
            app.cleanup()

    yield build
    sys.modules.pop("lessons", None)


def test_directives(build):
    """PyTorch comes first, whatever the order of the cells; a class is that of its file; a trap is named."""
    html, warnings = build("```{twins} Basic\n```\n\n{trap}`same-padding`")
    assert not warnings
    pair = html.partition('class="sd-tab-set beside')[2]
    assert pair.index("PyTorch</label>") < pair.index("tag_torch") < pair.index("Keras</label>") < pair.index("tag_keras")
    for package, base in (("torch", "nn"), ("keras", "keras")):
        assert f"{package}_impl/blocks.py</span>" in html and f'<span class="n">{base}</span>' in html
    assert html.count('<span class="nc">BasicBlock</span>') == 2
    assert 'href="lessons/traps.html#same-padding"' in html


@pytest.mark.parametrize(
    ("below", "expected"),
    [
        ("```{twins} BasicBlok\n```", "no class or function 'BasicBlok' in both packages, did you mean 'BasicBlock'?"),
        ("```{exercise} nothing.like_it\n```", "no exercise 'nothing.like_it'; expected twins/exercises/nothing.like_it.md"),
        ("```{code-cell} python\n:tags: [keras]\n\n3\n```", "a cell tagged keras without its twin"),
    ],
)
def test_directives_say_what_is_wrong(build, below, expected):
    assert expected in build(below)[1]
