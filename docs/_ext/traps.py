"""Writes the sections of the page of traps from `shared/traps.toml`: appended when Sphinx reads that page.

A section's anchor is the name of its trap.
"""

import re
from pathlib import Path

from shared import traps

PAGE = "lessons/traps"
ON_JAX = {"jax": "there alone", "tf": "no trap"}  # in the table
LESSONS = Path(__file__).parents[1] / "lessons"


def _prose(text):
    """Plain text as Markdown; words between backticks are code."""
    return "`".join(
        part if number % 2 else re.sub(r"([*_\[\]<>$|])", r"\\\1", part) for number, part in enumerate(text.split("`"))
    )


def _code(text):
    """Code, which may have backticks."""
    return f"`` {text} ``"


def _lesson(name):
    """A link to a lesson, once it is written."""
    page = LESSONS / f"{name}.md"
    lines = page.read_text(encoding="utf-8").splitlines() if page.exists() else []
    title = next((line[2:] for line in lines if line.startswith("# ")), None)
    return f"[{title}]({name}.md)" if title else _code(name)


def _section(trap):
    """The Markdown of one trap."""
    file, line, code = traps.place(trap.where)
    rows = {
        "PyTorch": _prose(trap.pytorch),
        "Keras": _prose(trap.keras),
        "Keras on JAX": _prose(trap.jax),
        "Formula": _code(trap.formula),
        "A naive port": f"{_prose(trap.naive)}. `twins traps {trap.name}` measures it.",
        "Here": f"{_prose(trap.ours)} In {_code(file)}, line {line}: {_code(code)}",
        "Source": ", ".join(_code(source) if ".py:" in source else _prose(source) for source in trap.source),
        "Lesson": _lesson(trap.lesson),
    }
    definitions = [row for label, text in rows.items() for row in (label, f": {text}", "")]
    return [f"({trap.name})=", f"## {trap.title}", "", *definitions]


def sections():
    found = traps.load().values()
    table = [
        "| trap | what differs | on JAX |",
        "| --- | --- | --- |",
        *(f"| [`{trap.name}`](#{trap.name}) | {trap.title} | {ON_JAX.get(trap.only, _prose(trap.jax))} |" for trap in found),
        "",
    ]
    return "\n".join([*table, *(row for trap in found for row in _section(trap))])


def _append(app, page, source):
    if page == PAGE:
        source[0] += "\n" + sections()


def setup(app):
    app.connect("source-read", _append)
    app.connect("env-get-outdated", lambda app, env, added, changed, removed: [PAGE])  # code may have moved
    return {"parallel_read_safe": True, "parallel_write_safe": True}
