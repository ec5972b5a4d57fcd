"""Kill a run of training at random moments, go on with it each time, and compare its end with that of a run left alone.

Every step of the runs writes a checkpoint, so that many of the `kill -9` fall into the writing of one.
"""

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from twins import runlog, training

TRAIN = "import sys; from shared import cli, training; training.SECONDS = 0; sys.argv[0] = 'twins'; cli.main()"


def start(*arguments):
    one_thread = dict.fromkeys(("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS"), "1")
    return subprocess.Popen(
        [sys.executable, "-c", TRAIN, "train", *map(str, arguments)],
        env={**os.environ, **one_thread},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def end(process):
    error = process.communicate()[1]
    if process.returncode:
        raise SystemExit(f"kills.py: the run failed: {error}")


def run(
    kills: Annotated[int, typer.Option(help="How often.")] = 200,
    recipe: Annotated[str, typer.Option(help="What to train.")] = "digits_residual",
    epochs: Annotated[int, typer.Option(help="For how many epochs: enough not to be done before the last kill.")] = 60,
    backend: Annotated[str, typer.Option(help="torch or tf.")] = "torch",
    seconds: Annotated[float, typer.Option(help="The latest moment, from the start of a process.")] = 6.0,
    seed: Annotated[int, typer.Option(help="Of the moments.")] = 0,
):
    """Kill, resume, compare; exit status 1 where the two ends are not the same bits."""
    moments, written = random.Random(seed), 0
    with tempfile.TemporaryDirectory() as folder:
        whole, broken = Path(folder, "whole"), Path(folder, "broken")
        options = ("--backend", backend, "--epochs", epochs)
        end(start(recipe, *options, "--out", whole))
        last = broken / "last.safetensors"
        for number in range(1, kills + 1):
            again = ("--resume", broken) if last.exists() else ("--out", broken)
            process = start(recipe, *options, *again)
            try:
                process.wait(moments.uniform(0, seconds))
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                process.wait()
            else:
                end(process)
                raise SystemExit(f"kills.py: the run was done before kill {number}; more --epochs would be right")
            written += any(broken.glob(".*")) if broken.exists() else 0
            if number % 20 == 0:
                step = training.read_checkpoint(broken).step if last.exists() else 0
                print(f"{time.strftime('%H:%M:%S')}  {number} kills, step {step}", flush=True)
        end(start(recipe, *options, "--resume", broken))
        one, other = training.read_checkpoint(whole), training.read_checkpoint(broken)
        logs = [runlog.read_log(folder) for folder in (whole, broken)]
        left = [path.name for path in broken.glob(".*")]
    different = [name for name in one.arrays if not np.array_equal(one.arrays[name], other.arrays[name])]
    same = [[{k: v for k, v in row.items() if k != "images_per_sec"} for row in rows] for rows in logs]
    print(f"{recipe}, {backend}: {one.step} steps, {kills} kills, {written} of them while a checkpoint was being written.")
    print(f"{len(one.arrays) - len(different)} of {len(one.arrays)} arrays are the same bits; the logs are ", end="")
    print("the same." if same[0] == same[1] else "not the same.")
    if left:
        print(f"left behind: {', '.join(left)}")
    sys.exit(1 if different or left or same[0] != same[1] else 0)


if __name__ == "__main__":
    typer.run(run)
