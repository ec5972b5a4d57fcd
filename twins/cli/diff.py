"""`twins diff`."""

import json
import math
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from shared.checks import Error, first_few

from . import output

if TYPE_CHECKING:
    from ..differences import Comparison
    from ..differences.blame import Finding

SPECIFIED = (
    "file.py:name (the file is run), package.module:name, torch:NAME, keras:NAME, a .keras file, or a torch.export file."
)


Inputs = Annotated[
    list[str] | None,
    typer.Option(
        metavar="SHAPE|IMAGE",
        help="A shape, channels first: 3x224x224; a shape of whole numbers: 16:int or 16:0-999; or a picture. Repeat for each "
        "input.",
    ),
]
OptimizerOfA = Annotated[
    str | None, typer.Option(metavar="TEXT", help="Optimiser of A for --train: 'SGD(lr=0.1, momentum=0.9)'.")
]
OptimizerOfB = Annotated[
    str | None, typer.Option(metavar="TEXT", help="Optimiser of B; in Keras: 'SGD(learning_rate=0.1, momentum=0.9)'.")
]


class Weights(StrEnum):
    """What B is judged with."""

    COPY = "copy"
    OWN = "own"


def diff(
    a: Annotated[str, typer.Argument(metavar="A", help=f"The reference network: {SPECIFIED}")],
    b: Annotated[str, typer.Argument(metavar="B", help="The network to compare with it, named in the same way.")],
    a_args: Annotated[str, typer.Option(metavar="JSON", help="Arguments to build A with: '{\"num_classes\": 10}'.")] = "{}",
    b_args: Annotated[str, typer.Option(metavar="JSON", help="Arguments to build B with.")] = "{}",
    input: Inputs = None,
    same_axes: Annotated[
        bool, typer.Option("--same-axes", help="Keep the order of the axes for Keras, for example (time, features) in both.")
    ] = False,
    weights: Annotated[
        Weights, typer.Option(help="copy: judge B with A's weights; own: judge each with its own weights.")
    ] = Weights.COPY,
    train: Annotated[
        int, typer.Option(metavar="N", help="Also train both for N steps with one optimiser, and show what diverges first.")
    ] = 0,
    a_optimizer: OptimizerOfA = None,
    b_optimizer: OptimizerOfB = None,
    map_file: Annotated[
        Path | None, typer.Option("--map", help="Write the names of the weights in A and in B to this file, for convert --map.")
    ] = None,
    html: Annotated[Path | None, typer.Option(help="Write a web page with both networks side by side.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
) -> None:
    """Compare any two networks, operation by operation, and name what differs.

    Each operation of B runs on A's inputs, so that one fault does not hide the next.
    A .py file that you name is run.
    Exit status 0 if the two are the same function, 1 if they are not or if that cannot be determined.
    """
    from shared.files import check_writable, write_text

    arguments = [_arguments(text, option) for text, option in ((a_args, "--a-args"), (b_args, "--b-args"))]
    optimizers = (a_optimizer, b_optimizer) if a_optimizer or b_optimizer else None
    given = [_input(text) for text in input] if input else None
    if html and html.suffix.lower() not in (".html", ".htm"):
        raise Error(f"{html}: expected a file ending in .html")
    for path in (html, map_file):
        if path:
            check_writable(path)
    from .. import differences
    from ..differences import opening, page

    with output.status("starting") as say:
        nets = []
        for text, settings, option in zip((a, b), arguments, ("--a-args", "--b-args"), strict=True):
            say(f"building {text}")
            nets.append(opening.open_network(text, settings, option))
        report = differences.diff(nets[0], nets[1], given, weights.value, (a, b), train, optimizers, same_axes, say)
    if map_file and not report.certain:
        raise Error(f"--map: most operations of {a} and {b} have no partner, so their weights cannot be matched")
    if map_file:
        write_text(map_file, json.dumps({move["from"]: move["to"] for move in report.map}, indent=1))
    if html:
        write_text(html, page.page(report))
    if as_json:
        output.show_json(differences.as_json(report))
    else:
        _show(report)
    sys.exit(0 if report.sound else 1)


def _arguments(text: str, option: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise Error(f"{option} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise Error(f'{option} is {text}, expected an object of arguments: {{"num_classes": 10}}')
    return value


def _input(text: str) -> Any:
    """A shape; an array of whole numbers; or a picture as an array in [0, 1], channels first."""
    shape, _, numbers = text.partition(":")
    sizes = shape.split("x")
    low, dash, high = ("0", "-", "9") if numbers == "int" else numbers.partition("-")
    whole = bool(dash) and all(number.isdecimal() and len(number) < 10 for number in (low, high)) and int(low) <= int(high)
    if all(size.isdecimal() and len(size) < 10 for size in sizes) and (whole or not numbers):
        from ..differences import whole_numbers

        found = tuple(map(int, sizes))
        return whole_numbers(found, int(low), int(high)) if numbers else found
    from shared import images

    if not Path(text).is_file():
        raise Error(
            f"--input {text}: there is no such file; expected a picture, a shape, channels first: 3x224x224, or a shape of "
            "whole numbers: 16:int, 16:0-999"
        )
    return (images.read_picture(text).transpose(2, 0, 1) / 255)[None]


def _show(report: "Comparison") -> None:
    from ..differences import training
    from ..differences.remedies import in_words

    a, b = report.names
    output.show(f"A: {a} ({report.frameworks[0]})", f"B: {b} ({report.frameworks[1]})")
    judged = f"B with {report.copied} arrays of A's weights" if report.copied else "both with their own weights"
    output.show(f"{len(report.pairs)} operations paired; {judged}.", "")
    if not report.certain:
        output.show(report.in_words)
    for number, finding in enumerate(report.findings, start=1):
        _show_finding(number, finding)
    if report.training:
        output.show("In training they also differ:")
    for number, finding in enumerate(report.training, start=len(report.findings) + 1):
        if report.trained:
            _show_finding(number, finding)
        else:
            ours, theirs = map(in_words, finding.values)
            output.show(f"  {finding.attribute}: A {ours}, B {theirs}, {_where(finding)}")
    for name, left in zip("AB", report.only, strict=True):
        idle = [one for one in left if one in report.harmless]
        if idle:
            output.show(f"Only in {name}, and without effect: {first_few(idle)}.")
    for note in report.notes:
        output.show(f"Note: {note}.")
    _show_verdict(report)
    if report.trained:
        for line in training.in_words(report.trained):
            output.show(line)


def _show_finding(number: int, finding: "Finding") -> None:
    from ..differences.remedies import in_words

    title = Text(f"{number}. {finding.kind.replace('_', ' ')}: {finding.attribute.replace('_', ' ')}", style="bold")
    output.show(title)
    for side, name, value, source in zip("AB", finding.operations, finding.values, finding.sources, strict=True):
        what = f": {in_words(value)}" if name or value else ""
        output.show(f"   {side}  {name or '-'}{what}{f' ({source})' if source else ''}")
    if finding.others:
        others = [pair[1] or pair[0] or "" for pair in finding.others]
        output.show(f"   and in {len(others)} more: {first_few(others)}")
    if finding.difference == 0:
        output.show("   no difference on A's input")
    elif math.isfinite(finding.difference):
        output.show(f"   differs by {finding.difference:.1e} on A's input")
    if finding.remedy:
        output.show(f"   to fix B: {finding.remedy}")
    if finding.trap:
        output.show(f"   see: twins traps {finding.trap}")
    output.show("")


def _where(finding: "Finding") -> str:
    name = finding.operations[1] or finding.operations[0]
    return f"{name} and {len(finding.others)} more" if finding.others else f"{name}"


def _show_verdict(report: "Comparison") -> None:
    if report.certain:
        output.show(Text(report.in_words, style="green" if report.same else "red"))
