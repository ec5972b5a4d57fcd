"""Measure what a user waits for before a network runs: the command, the imports, building ResNet-152.

Each time is of a process of its own, and they take turns. Times are in milliseconds.
"""

import datetime
import json
import os
import shlex
import statistics
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from worker import processor

import shared
from shared.weights import aside, check_place

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("torch", "torchvision", "tensorflow", "keras")
CLOCK = "import time; start = time.perf_counter(); {}; print(1000 * (time.perf_counter() - start))"
# The statements before the clock starts, and those that it times
IMPORTS = {
    "`import torch_impl`, beside `import torch`": ("import torch", "import torch_impl"),
    "`import keras_impl`, beside `import keras`": ("import keras", "import keras_impl"),
}
BUILDS = {
    "torchvision's constructor": ("import torchvision", "torchvision.models.resnet152()"),
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
    subprocess.run([sys.executable, "-m", "shared.cli", *words], cwd=ROOT, capture_output=True, check=True)
    return 1000 * (time.perf_counter() - start)


def main(
    rounds: Annotated[int, typer.Option(min=1, help="Turns that each takes.")] = 5,
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write JSON, too.")] = None,
):
    """Measure the command, the imports and building ResNet-152."""
    if json_file:
        check_place(json_file)
    candidates = {
        "`twins list`": lambda: command("list"),
        "`twins show resnet152`": lambda: command("show", "resnet152"),
        **{name: lambda code=code: python(f"{code[0]}; {CLOCK.format(code[1])}") for name, code in (IMPORTS | BUILDS).items()},
    }
    times = {name: [] for name in candidates}
    with Console(stderr=True).status("") as status:
        for number in range(rounds):
            for name, measure in candidates.items():
                status.update(f"{name.replace('`', '')}, turn {number + 1} of {rounds}")
                times[name].append(measure())
    table = Table("", "milliseconds", "lowest", "highest", "of torchvision's time", box=None)
    found = {}
    for name, values in times.items():
        median = statistics.median(values)
        found[name] = {"median": median, "lowest": min(values), "highest": max(values)}
        row = [name, f"{median:,.0f}", f"{min(values):,.0f}", f"{max(values):,.0f}"]
        if name in BUILDS:
            pairs = zip(values, times["torchvision's constructor"], strict=True)
            found[name]["ratio"] = statistics.median(ours / theirs for ours, theirs in pairs)
            row.append(f"{found[name]['ratio']:.2f}")
        table.add_row(*row)
    Console(width=None if sys.stdout.isatty() else 120, highlight=False).print(table)
    if json_file:
        about = {"date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"), "device": processor()}
        about |= {"command": shlex.join(["python", *sys.argv]), "versions": {name: version(name) for name in PACKAGES}}
        with aside(json_file) as temporary:
            temporary.write_text(json.dumps({**about, "milliseconds": found}, indent=2) + "\n")


if __name__ == "__main__":
    try:
        typer.run(main)
    except shared.Error as error:
        Console(stderr=True, highlight=False, markup=False, soft_wrap=True).print(f"startup.py: {error}")
        sys.exit(2)
