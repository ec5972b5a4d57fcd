"""The lessons: cells and classes of the two frameworks beside each other, exercises, and links to the traps.

Two cells in a row tagged `torch` and `keras` become a pair: both are seen at once where the window is wide, and as tabs that
switch together where it is not. The tabs are sphinx_design's; `lessons.css` has the width.
"""

import ast
import itertools
import os
from pathlib import Path

from docutils import nodes
from docutils.statemachine import StringList
from sphinx import addnodes
from sphinx.transforms import SphinxTransform
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective, SphinxRole
from sphinx.util.nodes import make_refnode
from sphinx_design.shared import create_component

from shared.checks import nearest

ROOT = Path(__file__).parents[2]
FRAMEWORKS = {"torch": "PyTorch", "keras": "Keras"}  # tags of cells, and what stands above them
TWINS = ("layers", "blocks", "preactivation", "inception", "network", "feature_maps")  # files with classes to show
EXERCISES = ROOT / "twins" / "exercises"
TRAPS = "lessons/traps"  # the page with a section for each trap
WARNINGS = logging.getLogger(__name__)


def beside(contents):
    """A pair of tabs of {framework's tag: nodes}."""
    pair = create_component("tab-set", ["sd-tab-set", "beside"])
    for tag, content in contents.items():
        label = nodes.rubric("", FRAMEWORKS[tag], classes=["sd-tab-label"], sync_group="framework", sync_id=tag)
        panel = create_component("tab-content", ["sd-tab-content"], children=content)
        pair += create_component("tab-item", ["sd-tab-item"], children=[label, panel], selected=tag == "torch")
    return pair


class Pairs(SphinxTransform):
    """Cells in a row of which one is PyTorch's and the other Keras's, put into tabs."""

    default_priority = 400

    def apply(self, **kwargs):
        cells = [(node, tag) for node in self.document.findall(nodes.container) for tag in FRAMEWORKS if _has_tag(node, tag)]
        paired = set()
        for (one, first), (two, second) in itertools.pairwise(cells):
            if one in paired or first == second or one.parent is not two.parent:
                continue
            if one.parent.index(two) == one.parent.index(one) + 1:
                paired |= {one, two}
                parent, place = one.parent, one.parent.index(one)
                parent.remove(two)
                parent.remove(one)
                cell = {first: [one], second: [two]}
                parent.insert(place, beside({tag: cell[tag] for tag in FRAMEWORKS}))
        for cell, tag in cells:
            if cell not in paired:
                WARNINGS.warning("a cell tagged %s without its twin before or after it", tag, location=cell)


def _has_tag(node, tag):
    return node.get("nb_element") == "cell_code" and f"tag_{tag}" in node["classes"]


def sources(path):
    """{name: (its first line, its text)} of the classes, functions and other names that a file of a package defines."""
    text = path.read_text(encoding="utf-8")
    found = {}
    for node in ast.parse(text).body:
        targets = getattr(node, "targets", None) or [getattr(node, "target", node)]
        for name in [getattr(target, "name", getattr(target, "id", None)) for target in targets]:
            if name:
                found[name] = node.lineno, ast.get_source_segment(text, node)
    return found


class Twins(SphinxDirective):
    """The source of a class or function in both packages: `BasicBlock`, or `Basic` for short."""

    required_arguments = 1

    def run(self):
        wanted = self.arguments[0]
        known = {}
        for file in TWINS:
            paths = {tag: ROOT / f"{tag}_impl" / f"{file}.py" for tag in FRAMEWORKS}
            texts = {tag: sources(path) for tag, path in paths.items()}
            names = texts["torch"].keys() & texts["keras"].keys()
            known |= dict.fromkeys(names)
            name = next((name for name in (wanted, f"{wanted}Block") if name in names), None)
            if name:
                return [beside({tag: self._source(paths[tag], *texts[tag][name]) for tag in FRAMEWORKS})]
        message = f"no class or function {wanted!r} in both packages{nearest(wanted, known)}"
        WARNINGS.warning(message, location=self.get_location())
        return []

    def _source(self, path, line, text):
        """Where a definition is, as a link to the file, and the definition."""
        self.env.note_dependency(str(path))
        place, target = str(path.relative_to(ROOT)), "/" + os.path.relpath(path, self.env.srcdir)
        link = addnodes.download_reference("", "", nodes.literal("", place), reftarget=target, refdoc=self.env.docname)
        where = nodes.paragraph("", "", link, nodes.Text(f", line {line}"), classes=["where"])
        return [where, nodes.literal_block(text, text, language="python")]


def statement(name):
    """(title, text, hint) of an exercise. Raises `OSError` if there is none of this name."""
    text = (EXERCISES / f"{name}.md").read_text(encoding="utf-8")
    text, _, hint = text.partition("\n## Hint\n")
    title, _, text = text.strip().removeprefix("# ").partition("\n")
    return title, text.strip(), hint.strip()


EXERCISE = """\
::::::{{admonition}} Exercise: {title}
:class: exercise

{text}

```console
$ twins check {name} {file}
```

:::::{{dropdown}} Hint

{hint}

:::::
::::::
"""


class Exercise(SphinxDirective):
    """An exercise of `twins check`: its statement, the command that judges, and the hint, folded."""

    required_arguments = 1

    def run(self):
        name, path = self.arguments[0], EXERCISES / f"{self.arguments[0]}.md"
        self.env.note_dependency(str(path))
        try:
            title, text, hint = statement(name)
        except OSError:
            near = nearest(name, (file.stem for file in EXERCISES.glob("*.md")))
            message = f"no exercise {name!r}{near}; expected {path.relative_to(ROOT)}"
            WARNINGS.warning(message, location=self.get_location(), type="lessons", subtype="exercise")
            return []
        file = "my.json" if "`my.json`" in text else "my.py"
        lines = EXERCISE.format(title=title, text=text, name=name, file=file, hint=hint).splitlines()
        box = nodes.container()
        self.state.nested_parse(StringList(lines, source=str(path)), 0, box)
        return box.children


class Trap(SphinxRole):
    """A link to a trap's section on the page of traps."""

    def run(self):
        code = nodes.literal(self.text, self.text)
        link = addnodes.pending_xref("", code, refdomain="", reftype="trap", reftarget=self.text, refdoc=self.env.docname)
        self.set_source_info(link)
        return [link], []


def link_trap(app, env, node, code):
    """A trap of the lessons as a link, once all pages have been read."""
    return make_refnode(app.builder, node["refdoc"], TRAPS, node["reftarget"], code) if node["reftype"] == "trap" else None


def setup(app):
    app.add_directive("twins", Twins)
    app.add_directive("exercise", Exercise)
    app.add_role("trap", Trap())
    app.add_transform(Pairs)
    app.connect("missing-reference", link_trap)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
