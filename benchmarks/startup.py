"""Measure what a user waits for before a network runs: the command, the imports, building ResNet-152.

Each time is of a process of its own, and they take turns. Times are in milliseconds.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated

import script
import typer
from origin import origin, processor
from rich.console import Console
from rich.table import Table

from shared.files import check_writable, write_text
from twins.cli import output

PACKAGES = ("torch", "torchvision", "tensorflow", "keras")
CLOCK = "import time; start = time.perf_counter(); {}; print(1000 * (time.perf_counter() - start))"
# The statements before the clock starts, and those that it times
IMPORTS = {
    "`import torch_impl`, beside `import torch`": ("import torch", "import torch_impl"),
    "`import keras_impl`, beside `import keras`": ("import keras", "import keras_impl"),
}
TORCHVISION = "torchvision's constructor"
BUILDS = {
    TORCHVISION: ("import torchvision", "torchvision.models.resnet152()"),
    "`torch_impl.build`": ("import torch_impl", "torch_impl.build('resnet152')"),
    "`keras_impl.build`": ("import keras_impl", "keras_impl.build('resnet152')"),
    "keras.applications' constructor": ("import keras", "keras.applications.ResNet152(weights=None)"),
}


def main(
    rounds: Annotated[int, typer.Option(min=1, help="Number of times that each is measured.")] = 5,
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Also write JSON.")] = None,
) -> None:
    """Measure the command, the imports and building ResNet-152."""
    if json_file:
        check_writable(json_file)
    code = {name: f"{before}; {CLOCK.format(timed)}" for name, (before, timed) in (IMPORTS | BUILDS).items()}
    candidates: dict[str, Callable[[], float]] = {
        "`twins list`": lambda: command("list"),
        "`twins show resnet152`": lambda: command("show", "resnet152"),
        **{name: partial(python, statements) for name, statements in code.items()},
    }
    times, notes = measure(candidates, rounds)
    results = summarise(times)
    show(results, notes)
    if json_file:
        about = {**origin(), "device": processor(), "versions": {name: installed(name) for name in PACKAGES}}
        write_text(json_file, json.dumps({**about, "notes": notes, "milliseconds": results}, indent=2) + "\n")
    if not results:
        sys.exit(1)


def command(*words: str) -> float:
    """How long the command takes."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", "twins", *words], capture_output=True, text=True, check=True)
    return 1000 * (time.perf_counter() - start)


def python(code: str) -> float:
    """The number that a process prints last when it runs the code."""
    environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    return float(done.stdout.split()[-1])


def measure(candidates: Mapping[str, Callable[[], float]], rounds: int) -> tuple[dict[str, list[float]], list[str]]:
    """({name: a time for each round}, notes on the candidates that failed and are left out)."""
    times: dict[str, list[float]] = {name: [] for name in candidates}
    notes = []
    with output.status("") as say:
        for number in range(rounds):
            for name in list(times):
                say(f"{name.replace('`', '')}, turn {number + 1} of {rounds}")
                try:
                    times[name].append(candidates[name]())
                except subprocess.CalledProcessError as error:
                    lines = error.stderr.strip().splitlines() or [f"it ended with {error.returncode}"]
                    notes.append(f"{name} failed: {lines[-1]}")
                    del times[name]
    return times, notes


def summarise(times: Mapping[str, Sequence[float]]) -> dict[str, dict[str, float]]:
    """{name: its median, lowest and highest time, and for building the "ratio" to torchvision's}."""
    results = {}
    for name, values in times.items():
        results[name] = {"median": statistics.median(values), "lowest": min(values), "highest": max(values)}
        if name in BUILDS and TORCHVISION in times:
            pairs = zip(values, times[TORCHVISION], strict=True)
            results[name]["ratio"] = statistics.median(ours / theirs for ours, theirs in pairs)
    return results


def show(results: Mapping[str, Mapping[str, float]], notes: Sequence[str]) -> None:
    """Print the table and the notes."""
    table = Table("", "milliseconds", "lowest", "highest", "of torchvision's time", box=None)
    for name, values in results.items():
        ratio = [f"{values['ratio']:.2f}"] if "ratio" in values else []
        table.add_row(name, *(f"{values[key]:,.0f}" for key in ("median", "lowest", "highest")), *ratio)
    console = Console(width=None if sys.stdout.isatty() else 120, highlight=False, markup=False)
    if results:
        console.print(table)
    for note in notes:
        console.print(note, soft_wrap=True)


def installed(package: str) -> str | None:
    """The version of a package, or None if it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


if __name__ == "__main__":
    script.start(main)
