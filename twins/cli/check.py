"""`twins check`."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shared.checks import Error

from .. import exercises
from . import output

if TYPE_CHECKING:
    from ..judge import Verdict


def check(
    exercise: Annotated[
        str | None, typer.Argument(metavar="EXERCISE", help="Name of the exercise, LESSON.EXERCISE. Default: list all.")
    ] = None,
    file: Annotated[
        Path | None, typer.Argument(metavar="FILE", help="Your solution, in PyTorch or Keras; for a spec, JSON. Code is run.")
    ] = None,
    hint: Annotated[bool, typer.Option("--hint", help="Show the hint as well.")] = False,
    solution: Annotated[bool, typer.Option("--solution", help="Show the reference solutions.")] = False,
    limit: Annotated[float, typer.Option(min=1, help="Seconds after which the file is stopped.")] = 120,
    as_json: Annotated[bool, typer.Option("--json", help="Print the verdict as JSON.")] = False,
) -> None:
    """Judge your solution to an exercise: where it first diverges from the reference, how far, and which mistake that is.

    Without FILE, print the exercise. With FILE, run it in a separate process.
    Exit status 0 if it is right, 1 if it is wrong or raises an exception.
    """
    if exercise is None:
        _list(as_json)
        return
    statement = exercises.statement(exercise)
    if file is None:
        if as_json:
            raise Error("--json prints a verdict, so it needs a file")
        output.show(*([] if hint or solution else [statement.title, "", statement.text, "", _command(exercise, statement)]))
    passed = file is None or _judge(exercise, file, limit, as_json)
    if hint and not as_json:
        output.show(*([""] if file else []), "Hint", "", statement.hint)
    if solution and not as_json:
        _show_solutions(exercise, file)
    if not passed:
        raise typer.Exit(1)


def _list(as_json: bool) -> None:
    """All exercises, by lesson."""
    titles = {name: exercises.statement(name).title for name in exercises.names()}
    if as_json:
        output.show_json([{"exercise": name, "lesson": name.partition(".")[0], "title": t} for name, t in titles.items()])
        return
    table = output.table("exercise", "title")
    for lesson in exercises.LESSONS:
        for name in (name for name in titles if name.startswith(f"{lesson}.")):
            table.add_row(name, titles[name])
        table.add_section()
    output.show(table, "`twins check EXERCISE` prints one; `twins check EXERCISE FILE` judges your solution.")


def _judge(exercise: str, file: Path, limit: float, as_json: bool) -> bool:
    """Print the verdict, and return whether the solution is right."""
    from .. import judge

    verdict = judge.run(exercise, file, limit)
    if as_json:
        output.show_json({key: value for key, value in asdict(verdict).items() if key != "climbed"})
        return verdict.passed
    place = f" in {verdict.framework}" if verdict.framework else ""
    output.show(f"{exercise}: {file}{place}", "")
    for rung in verdict.climbed:
        output.show(f"  {_rung(rung)}  {judge.RUNGS[rung]:32}  yes")
    if verdict.passed:
        output.show("", _sentence(verdict))
        return True
    rung = verdict.rung or 0
    by = (
        ""
        if verdict.difference is None or rung < 2
        else f"differs by {verdict.difference:.1e}; the tolerance is {verdict.tolerance:.0e}"
    )
    output.show(f"  {_rung(rung)}  {judge.RUNGS[rung]:32}  no{': ' if by else ''}{by}")
    if verdict.place:
        output.show(f"{'':10}{verdict.place}")
    output.show("", _sentence(verdict))
    if verdict.trap:
        output.show(f"This is the trap {verdict.trap}: `twins traps {verdict.trap}`.")
    output.show(f"A hint: `twins check {exercise} --hint`.")
    return False


def _sentence(verdict: "Verdict") -> str:
    """The message with a capital, unless it begins with the name of the file, and a full stop."""
    text = verdict.message
    first = text[0] if text.startswith(verdict.file) else text[0].upper()
    return first + text[1:] + ("" if text.endswith("?") else ".")


def _rung(rung: int) -> str:
    return f"rung {rung}" if rung else "      "


def _command(exercise: str, statement: exercises.Statement) -> str:
    return f"Judge it with: twins check {exercise} my{statement.suffix}"


def _show_solutions(exercise: str, file: Path | None) -> None:
    for path in exercises.solutions(exercise):
        output.show(*([""] if file else []), f"{path.name}:", "", path.read_text(encoding="utf-8").rstrip())
