"""Measure what a user waits for before a network runs: the command, the imports, building ResNet-152.

Each time is of a process of its own, and they take turns. Times are in milliseconds.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from run import origin
from worker import processor

import shared
from shared.files import atomic_path, check_writable

ROOT = Path(__file__).resolve().parents[1]
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


def python(code):
    """What a process prints last that runs the code, as a number."""
    environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    return float(done.stdout.split()[-1])


def command(*words):
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", "twins", *words], cwd=ROOT, capture_output=True, text=True, check=True)
    return 1000 * (time.perf_counter() - start)


def installed(package):
    """The version of a package, or None where it is not there."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def main(
    rounds: Annotated[int, typer.Option(min=1, help="Turns that each takes.")] = 5,
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write JSON, too.")] = None,
):
    """Measure the command, the imports and building ResNet-152."""
    if json_file:
        check_writable(json_file)
    candidates = {
        "`twins list`": lambda: command("list"),
        "`twins show resnet152`": lambda: command("show", "resnet152"),
        **{name: lambda code=code: python(f"{code[0]}; {CLOCK.format(code[1])}") for name, code in (IMPORTS | BUILDS).items()},
    }
    times, notes = {name: [] for name in candidates}, []
    with Console(stderr=True).status("") as status:
        for number in range(rounds):
            for name in list(times):
                status.update(f"{name.replace('`', '')}, turn {number + 1} of {rounds}")
                try:
                    times[name].append(candidates[name]())
                except subprocess.CalledProcessError as error:
                    lines = error.stderr.strip().splitlines() or [f"it ended with {error.returncode}"]
                    notes.append(f"{name} failed: {lines[-1]}")
                    del times[name]
    table = Table("", "milliseconds", "lowest", "highest", "of torchvision's time", box=None)
    found = {}
    for name, values in times.items():
        median = statistics.median(values)
        found[name] = {"median": median, "lowest": min(values), "highest": max(values)}
        row = [name, f"{median:,.0f}", f"{min(values):,.0f}", f"{max(values):,.0f}"]
        if name in BUILDS and TORCHVISION in times:
            pairs = zip(values, times[TORCHVISION], strict=True)
            found[name]["ratio"] = statistics.median(ours / theirs for ours, theirs in pairs)
            row.append(f"{found[name]['ratio']:.2f}")
        table.add_row(*row)
    console = Console(width=None if sys.stdout.isatty() else 120, highlight=False, markup=False)
    if found:
        console.print(table)
    for note in notes:
        console.print(note, soft_wrap=True)
    if json_file:
        about = {**origin(), "device": processor(), "versions": {name: installed(name) for name in PACKAGES}}
        with atomic_path(json_file) as temporary:
            temporary.write_text(json.dumps({**about, "notes": notes, "milliseconds": found}, indent=2) + "\n")
    if not found:
        sys.exit(1)


if __name__ == "__main__":
    try:
        typer.run(main)
    except shared.Error as error:
        Console(stderr=True, highlight=False, markup=False, soft_wrap=True).print(f"startup.py: {error}")
        sys.exit(2)
