"""README.md and docs/: every console and Python block runs and prints what the page shows; the reference pages are complete.

A page has one temporary folder, in which its blocks run in order, and one Python namespace. A block of JSON that is a spec or a
recipe is checked, and saved there as NAME.json. After `$ COMMAND` come the lines that it prints, if any are shown; a `text`
block directly after a Python block is what that prints. `...` stands for any text or, alone on a line, for any lines, and
numbers have the tolerance of `documented.same_number`: times and dates are left out.

A comment directly above a block, `<!-- MARK -->`, says how it is run: `not run: REASON`, `needs TWINS_DATA` (skipped where that
variable is not set), `long` (with `pytest --long` only), `exit status N`. The last three may stand together, with commas.
"""

import json
import os
import re

import documented
import pytest
from documented import PAGES, ROOT

import shared
from shared import recipes
from twins import training

BLOCKS = [block for page in PAGES for block in documented.blocks(page)]
RUN = [block for block in BLOCKS if block.runs]
LANGUAGES = {"console", "python", "json", "text"}


class Page:
    """The folder of a page, the process of its Python blocks, and how many of its blocks have run."""

    def __init__(self, path, folder):
        self.blocks = [block for block in RUN if block.page == path]
        self.folder = folder
        self.session = None
        self.done = 0
        for name in ("benchmarks", "shared"):  # commands of the pages are for the root of the repository
            (folder / name).symlink_to(ROOT / name)

    def run(self, block):
        """Run a block, after those above it that were not selected, and say what is wrong, or ""."""
        position = self.blocks.index(block)
        for earlier in self.blocks[self.done : position]:
            if "long" not in earlier.marks and not _lacks_data(earlier):
                self._run(earlier)
        self.done = position + 1
        return self._run(block)

    def _run(self, block):
        """What is wrong, as a text, or ""."""
        try:
            {"console": self._run_console, "python": self._run_python, "json": self._check_json}[block.language](block)
        except (AssertionError, ValueError, shared.Error) as error:
            return f"{block.place}: {error}"
        return ""

    def _run_console(self, block):
        expected_status = max([int(mark.split()[-1]) for mark in block.marks if mark.startswith("exit status")], default=0)
        for command, expected in documented.commands(block.text):
            status, printed = documented.run_command(command, self.folder)
            assert status == expected_status, f"exit status {status} of {command}\n{printed}"
            if any(line.strip() for line in expected):
                _check_output(command, expected, printed)

    def _run_python(self, block):
        self.session = self.session or documented.Session(self.folder)
        printed = self.session.run(block)
        if block.output:
            _check_output("output of the block", block.output.splitlines(), printed)

    def _check_json(self, block):
        value = json.loads(block.text)
        if "layers" in value or "optimizer" in value:
            path = self.folder / f"{value['name']}.json"
            path.write_text(block.text, encoding="utf-8")
            (shared.load if "layers" in value else recipes.load)(path)


def _check_output(what, expected, printed):
    difference = documented.first_difference(expected, printed.splitlines())
    text = "\n".join(expected)
    assert difference is None, f"{what}\nnot printed: {difference}\n\nexpected:\n{text}\n\nprinted:\n{printed}"


def _lacks_data(block):
    return "needs TWINS_DATA" in block.marks and "TWINS_DATA" not in os.environ


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    found = {path: Page(path, tmp_path_factory.mktemp(path.stem)) for path in PAGES}
    yield found
    for page in found.values():
        if page.session:
            page.session.close()


@pytest.mark.parametrize(
    "block",
    [pytest.param(block, marks=[pytest.mark.long] * ("long" in block.marks)) for block in RUN],
    ids=lambda block: block.place,
)
def test_block(block, pages):
    if _lacks_data(block):
        pytest.skip("TWINS_DATA is not set")
    failure = pages[block.page].run(block)
    if failure:
        pytest.fail(failure, pytrace=False)


def test_commands_do_not_hide():
    """Every block is of a language that is run, or text without commands."""
    for block in BLOCKS:
        assert block.language in LANGUAGES or block.language.startswith("{"), f"{block.place}: {block.language!r}"
        if block.language == "text" or block.language.startswith("{code-block}"):
            hidden = re.search(r"^(\$|twins|python|pip|pytest|torchrun) .*", block.text, re.MULTILINE)
            assert not hidden, f"{block.place}: a command in a block of text: {hidden[0]}"


@pytest.mark.parametrize(
    ("expected", "printed", "same"),
    [
        ("Test accuracy on 360 images: 79.17%.", "Test accuracy on 360 images: 79.17%.", True),
        ("Test accuracy on 360 images: 79.17%.", "Test accuracy on 361 images: 79.17%.", False),
        ("Test accuracy on 360 images: 79.17%.", "Test accuracy on 360 images: 79.44%.", False),
        ("conv1  16x28x28  1.2e-16", "conv1 16x28x28  9.9e-16", True),
        ("conv1  16x28x28  1.2e-16", "conv1 16x28x28  1.3e-15", False),
        ("conv1  16x28x28  1.2e-16", "conv1 16x28x27  1.2e-16", False),
        ("0.0e+00", "6.5e-16", True),
        ("0.0e+00", "6.5e-12", False),
        ("2.3311189886134", "2.3311189886135", True),
        ("2.3311189886134", "2.3311290000000", False),
        ("11,689,512 parameters in ... s", "11,689,512 parameters in 3.2 s", True),
        ("11,689,512 parameters in ... s", "11,689,513 parameters in 3.2 s", False),
        ("-0.5", "0.5", False),
        ("one\n...\ntwo", "one\n1\n2\n\ntwo\n", True),
        ("one\n...\ntwo", "one\ntwo", True),
        ("one\n...", "two\none", False),
        ("one\ntwo", "one\ntwo\nthree", False),
        ("one\ntwo\nthree", "one\ntwo", False),
    ],
)
def test_output_is_compared(expected, printed, same):
    difference = documented.first_difference(expected.splitlines(), printed.splitlines())
    assert (difference is None) == same, difference


def _code(text):
    """All words in the code of a page."""
    return {word for code in re.findall(r"`+([^`]+)`+", text) for word in re.findall(r"[\w-]+", code)}


def _tables(page):
    """The rows of a page's tables, {cells of the header: [cells of a row, ...]}; tables with the same header are one."""
    found, header = {}, None
    for line in (ROOT / page).read_text(encoding="utf-8").splitlines():
        cells = line.startswith("|") and tuple(cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1])
        if not cells:
            header = None
        elif header is None:
            header = cells
        elif not all(re.fullmatch(":?-+:?", cell) for cell in cells):
            found.setdefault(header, []).append(cells)
    return found


def _reference(page):
    return (ROOT / "docs" / "reference" / page).read_text(encoding="utf-8")


def test_commands_reference(monkeypatch):
    """Every command is in the README's table; the page that the build generates has every option, with its choices."""
    from typer.main import get_command

    from twins.backends import Backend
    from twins.cli import app

    monkeypatch.syspath_prepend(ROOT / "docs" / "_ext")
    import commands

    sections = {section.splitlines()[0]: section for section in commands.reference().split("\n## ")}
    table = {row[0] for rows in _tables("README.md").values() for row in rows}
    for name, command in get_command(app).commands.items():
        assert any(re.match(rf"`twins {name}\b", cell) for cell in table), f"README.md: twins {name}"
        for parameter in command.params:
            for option in parameter.opts:
                assert option == "--help" or not option.startswith("--") or option in sections[f"twins {name}"], option
    assert "|".join(Backend) in sections["twins predict"]


def test_networks():
    """The table has every network, with its parameters, source and weights, as `python benchmarks/parity.py` prints them."""
    rows = _tables("docs/reference/networks.md")["network", "source", "parameters", "published weights", "outputs", "gradients"]
    assert [row[0] for row in rows] == [f"`{name}`" for name in shared.names()]
    for row, name in zip(rows, shared.names(), strict=True):
        spec = shared.load(name)
        source = re.split("[:;] ", spec.get("source", ""))[0]
        assert row[1:4] == (source, f"{spec['parameters']:,}", spec.get("weights", ""))
        assert all(re.fullmatch(r"\de-\d\d \(\de-\d\d\)", cell) for cell in row[4:]), row


def test_spec_reference():
    """Every type is there with the keys that it needs, and every key, kind of shortcut and choice is mentioned."""
    from shared.spec import OPTIONAL, REQUIRED, SHORTCUTS, TYPES

    rows = _tables("docs/reference/spec.md")["type", "needs", "may have", ""]
    needed = {kind: set(keys.split()) for kind, (keys, _) in TYPES.items()}
    assert {row[0].strip("`"): _code(row[1]) for row in rows} == needed
    words = _code(_reference("spec.md"))
    assert not {*" ".join([REQUIRED, OPTIONAL]).split()} - words
    assert not {key for needed, optional in TYPES.values() for key in f"{needed} {optional}".split()} - words
    assert not {kind for kinds in SHORTCUTS.values() for kind in kinds} - words


def test_recipe_reference():
    words = _code(_reference("recipe.md"))
    parts = [recipes.OPTIMIZERS, recipes.SCHEDULES]
    assert not {*" ".join([recipes.REQUIRED, recipes.OPTIONAL, recipes.AUGMENTATIONS]).split()} - words
    assert not {word for part in parts for name, keys in part.items() for word in f"{name} {' '.join(keys)}".split()} - words
    assert not {*recipes.PRECISIONS} - words
    assert not {*recipes.names()} - words


def test_links_have_a_text():
    """Sphinx fills in the title of a page; a code host, where the pages are read too, shows an empty link as nothing."""
    assert [page.name for page in PAGES if re.search(r"(?<!!)\[\]\(", page.read_text(encoding="utf-8"))] == []


def test_files_of_a_run():
    rows = _tables("docs/reference/files.md")["file", "contents"]
    assert {row[0].strip("`") for row in rows} == {*training.FILES}


def test_pages_are_in_the_contents():
    """Every page is in a toctree, so that a reader can find it."""
    listed = {ROOT / "docs" / "index.md"}
    for block in BLOCKS:
        if block.language.startswith("{toctree}"):
            names = [line for line in block.text.splitlines() if line and not line.startswith(":")]
            listed |= {block.page.parent / f"{name}.md" for name in names}
    assert listed == {*PAGES} - {ROOT / "README.md"}
