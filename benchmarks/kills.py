"""Kill a training run at random moments, resume it each time, and compare the end with that of an undisturbed run.

Every step of the runs writes a checkpoint, and a process is killed after its first one, so that a `kill -9` can interrupt
the writing of another; how many did is counted.
"""

import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import script
import typer

from shared.checks import Error
from twins import backends, runlog, training
from twins.backends import Backend

TRAIN = "import sys; from twins import cli, training; training.SECONDS = 0; sys.argv[0] = 'twins'; cli.main()"


def main(
    kills: Annotated[int, typer.Option(min=1, help="Number of kills.")] = 100,
    recipe: Annotated[str, typer.Option(help="Recipe to train from.")] = "digits_residual",
    epochs: Annotated[int, typer.Option(min=1, help="Total number of epochs; the run must outlast the kills.")] = 250,
    backend: Annotated[Backend, typer.Option(help="Backend to train in: torch, tf, jax or keras-torch.")] = Backend.TORCH,
    seconds: Annotated[float, typer.Option(help="Longest time from a process's first checkpoint to its kill.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Seed of the random moments.")] = 0,
) -> None:
    """Kill and resume a run, and compare it with an undisturbed one; exit status 1 if the two do not end in the same bits."""
    backends.check_backend(backend, backends.ENGINES, "a run is killed and resumed in one framework")
    arguments = (recipe, "--backend", backend, "--epochs", epochs)
    with tempfile.TemporaryDirectory() as folder:
        whole, broken = Path(folder, "whole"), Path(folder, "broken")
        with script.Children() as children:
            wait(start(children, *arguments, "--out", whole))
            interrupted = kill(children, broken, arguments, kills, seconds, random.Random(seed))
            wait(start_or_resume(children, broken, arguments))
        same = report(whole, broken, f"{recipe}, {backend}", f"{kills} kills, {interrupted}")
    sys.exit(0 if same else 1)


def start(children: script.Children, *arguments: object) -> subprocess.Popen[str]:
    """A process of `twins train`, on one thread, that writes a checkpoint after every step."""
    one_thread = dict.fromkeys(("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS"), "1")
    return children.start(
        [sys.executable, "-c", TRAIN, "train", *map(str, arguments)],
        env={**os.environ, **one_thread},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def start_or_resume(children: script.Children, folder: Path, arguments: tuple[object, ...]) -> subprocess.Popen[str]:
    """A process that resumes the run of a folder, or starts it there if no checkpoint has been written."""
    return start(children, *arguments, "--resume" if (folder / "last.safetensors").exists() else "--out", folder)


def wait(process: subprocess.Popen[str]) -> None:
    """Wait for the end of a process. Raises `Error` if it fails."""
    message = process.communicate()[1].strip()
    if process.returncode:
        raise Error(f"the run failed: {message}")


def kill(
    children: script.Children, folder: Path, arguments: tuple[object, ...], kills: int, seconds: float, moments: random.Random
) -> int:
    """Start or resume a run in a folder and kill it, again and again; returns how many kills interrupted a checkpoint.

    Raises `Error` if the run is complete before the last kill.
    """
    interrupted, last = 0, folder / "last.safetensors"
    for number in range(1, kills + 1):
        before = written(last)
        process = start_or_resume(children, folder, arguments)
        while process.poll() is None and written(last) == before:
            time.sleep(0.005)
        try:
            process.wait(moments.uniform(0, seconds))
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
        else:
            wait(process)
            raise Error(f"the run was complete before kill {number}; pass more --epochs")
        interrupted += bool(temporaries(folder, process.pid))
        if number % 20 == 0:
            step = training.read_checkpoint(folder).step if last.exists() else 0
            print(f"{time.strftime('%H:%M:%S')}  {number} kills, step {step}", flush=True)
    return interrupted


def written(path: Path) -> int:
    """When a file was written, in nanoseconds; 0 if there is none."""
    return path.stat().st_mtime_ns if path.exists() else 0


def temporaries(folder: Path, process: int | None = None) -> list[str]:
    """The half-written files in a run's folder, of any process or of one with this id: each names its own (`shared.files`)."""
    return [path.name for path in folder.glob(".*" if process is None else f".{process}.*")]


def report(whole: Path, broken: Path, run: str, kills: str) -> bool:
    """Print whether two runs ended in the same arrays and logs, with no file left behind; returns whether they did."""
    one, other = training.read_checkpoint(whole), training.read_checkpoint(broken)
    different = [name for name in one.arrays if not np.array_equal(one.arrays[name], other.arrays[name])]
    same_logs = untimed_log(whole) == untimed_log(broken)
    leftovers = temporaries(broken)
    print(f"{run}: {one.step} steps, {kills} of them while a checkpoint was being written.")
    print(f"{len(one.arrays) - len(different)} of {len(one.arrays)} arrays are the same bits; the logs are ", end="")
    print("the same." if same_logs else "not the same.")
    if leftovers:
        print(f"left behind: {', '.join(leftovers)}")
    return not different and same_logs and not leftovers


def untimed_log(folder: Path) -> list[dict[str, Any]]:
    """The rows of a run's log without their speed."""
    return [{key: value for key, value in row.items() if key != "images_per_sec"} for row in runlog.read_log(folder)]


if __name__ == "__main__":
    script.start(main)
