"""What README.md and docs/ show, run: their blocks, the processes these run in, and printed output compared with a tolerance.

Libraries for this (sybil, pytest-examples, mktestdocs, byexample, cram) run Python or compare text. None compares the numbers
that a command prints with a tolerance, or lets commands share the start of the frameworks.
"""

import contextlib
import io
import linecache
import math
import multiprocessing
import os
import re
import subprocess
import sys
import traceback
from pathlib import Path
from typing import NamedTuple

from markdown_it import MarkdownIt

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
MARK = re.compile(r"<!-- (not run: [^ ].*?|(?:(?:needs TWINS_DATA|long|exit status \d+)(?:, )?)+) -->$")

# Forking a process that has loaded both frameworks and used neither saves each command the 6 s of loading them.
_fork = multiprocessing.get_context("forkserver")
_fork.set_forkserver_preload(["torch_impl", "keras_impl"])


class Block(NamedTuple):
    """A fenced block of a page."""

    page: Path
    line: int  # of its first line of text, from 1
    language: str
    text: str
    marks: tuple[str, ...]  # above it
    output: str  # the text block directly after it, or ""

    @property
    def runs(self):
        return self.language in ("console", "python", "json") and not any(mark.startswith("not run") for mark in self.marks)

    @property
    def place(self):
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(page):
    """The fenced blocks of a page, in order, those inside directives such as grids included."""
    lines, found = page.read_text(encoding="utf-8").splitlines(), []
    tokens = MarkdownIt().parse("\n".join(lines))
    for token, following in zip(tokens, [*tokens[1:], None], strict=True):
        if token.type == "fence":
            start = token.map[0]
            mark = MARK.match(lines[start - 1].strip()) if start else None
            marks = () if not mark else (mark[1],) if mark[1].startswith("not run") else tuple(mark[1].split(", "))
            output = following.content if following and (following.type, following.info) == ("fence", "text") else ""
            found.append(Block(page, start + 2, token.info.strip(), token.content, marks, output))
    return found


def commands(text):
    """The commands of a console block, each with the lines it is expected to print."""
    found = []
    for line in text.splitlines():
        if found and found[-1][0].endswith("\\") and not found[-1][1]:
            found[-1] = (found[-1][0][:-1] + line, [])
        elif line.startswith("$ "):
            found.append((line[2:], []))
        elif found:
            found[-1][1].append(line)
        else:
            raise ValueError(f"a console block begins with '$ COMMAND', not with {line!r}")
    return found


NUMBER = re.compile(r"(?<![\w.])-?\d+(?:,\d{3})*(?:\.\d+)?(?:e[-+]?\d+)?(?![\w]|[.,]\d)", re.IGNORECASE)


def same_number(expected, printed):
    """Whether a number is what was expected, both as printed.

    Whole numbers have to be equal. Numbers below 1e-5 in scientific notation are rounding noise, which may be at most ten times
    as large, or 1e-15 if that is more. Other numbers may differ by a relative 1e-3, those with more than eight digits by 1e-8.
    """
    one, two = (float(text.replace(",", "")) for text in (expected, printed))
    if not re.search(r"[.e]", expected, re.IGNORECASE):
        return expected == printed
    if "e" in expected.lower() and abs(one) < 1e-5:
        return abs(two) <= 10 * max(abs(one), 1e-16)
    digits = len(re.sub(r"e.*|\D", "", expected, flags=re.IGNORECASE).lstrip("0"))
    return math.isclose(one, two, rel_tol=1e-8 if digits > 8 else 1e-3)


def same_line(expected, printed):
    """Whether a line is what was expected: `...` stands for any text, runs of spaces count as one, numbers have a tolerance."""
    expected, printed = " ".join(expected.split()), " ".join(printed.split())
    numbers = NUMBER.findall(expected)
    texts = [re.escape(text).replace(r"\.\.\.", ".*?") for text in NUMBER.split(expected)]
    match = re.fullmatch(f"({NUMBER.pattern})".join(texts), printed, re.IGNORECASE)
    return bool(match) and all(map(same_number, numbers, match.groups()))


def first_difference(expected, printed):
    """The first expected line that was not printed, or None. A line `...` stands for any lines; empty lines do not count."""
    expected, printed = ([line for line in lines if line.strip()] for lines in (expected, printed))
    furthest = 0

    def fits(i, j):
        nonlocal furthest
        furthest = max(furthest, i)
        if i == len(expected):
            return j == len(printed)
        if expected[i].strip() == "...":
            return any(fits(i + 1, k) for k in range(j, len(printed) + 1))
        return j < len(printed) and same_line(expected[i], printed[j]) and fits(i + 1, j + 1)

    if fits(0, 0):
        return None
    return expected[furthest] if furthest < len(expected) else "the end"


class Session:
    """A process of its own in which the Python blocks of a page run, in one namespace."""

    def __init__(self, folder):
        self._here, there = _fork.Pipe()
        self._process = _fork.Process(target=_serve, args=(there, folder, dict(os.environ)))
        self._process.start()

    def run(self, block):
        """What the block prints. Raises `AssertionError` with the traceback if it fails."""
        self._here.send((block.text, block.place, block.line))
        printed, error = self._here.recv()
        assert not error, error
        return printed

    def close(self):
        self._process.kill()
        self._process.join()


def _serve(pipe, folder, environment):
    _enter(folder, environment)
    namespace = {"__name__": "__main__"}
    while True:
        text, name, line = pipe.recv()
        output, error = io.StringIO(), ""
        text = "\n" * (line - 1) + text
        linecache.cache[name] = len(text), None, text.splitlines(keepends=True), name  # for tracebacks and `inspect`
        with contextlib.redirect_stdout(output):
            try:
                exec(compile(text, name, "exec"), namespace)
            except BaseException:
                error = traceback.format_exc()
        pipe.send((output.getvalue(), error))


def run_command(command, folder):
    """The exit status of a command, and what it prints: on stdout, and on stderr as well if it fails."""
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    if re.match(r"twins [^|&;<>`(]*$", command) and not re.search(r"--backend[ =](jax|keras-torch)", command):
        # The shell expands variables and file names.
        words = subprocess.run(["bash", "-c", rf"printf '%s\0' {command}"], cwd=folder, stdout=subprocess.PIPE, check=True)
        process = _fork.Process(target=_twins, args=(words.stdout.decode().split("\0")[:-1], folder, environment))
        process.start()
        process.join()
        status = process.exitcode
    else:
        with open(folder / ".stdout", "wb") as stdout, open(folder / ".stderr", "wb") as stderr:
            shell = ["bash", "-euo", "pipefail", "-c", command]
            status = subprocess.run(shell, cwd=folder, env=environment, stdout=stdout, stderr=stderr).returncode
    stdout, stderr = ((folder / name).read_text(encoding="utf-8") for name in (".stdout", ".stderr"))
    return status, stdout + stderr if status else stdout


def _twins(words, folder, environment):
    _enter(folder, environment)
    for descriptor, name in ((1, ".stdout"), (2, ".stderr")):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
    sys.stdout, sys.stderr = (open(number, "w", encoding="utf-8", closefd=False) for number in (1, 2))
    sys.argv = words
    from twins.cli import main

    main()


def _enter(folder, environment):
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.path.insert(0, "")
