"""Measure how fast pictures are read from a folder, and how much memory evaluation and training take as it grows.

Speed: images per second that come out of the loader, beside those that Pillow alone decodes, resizes and crops in as many
processes; they take turns. Memory: the largest sum, over a command and the processes that it starts, of what they do not share
with others (PSS); the pictures are small JPEGs.
"""

import io
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated

import numpy as np
import script
import typer
from origin import processor
from PIL import Image

from shared import folders, networks, weights
from shared.checks import Error
from shared.folders import Pictures
from twins import batches
from twins.backends import Backend
from twins.cli import output
from twins.loading import Loader, default_workers

NETWORK = "resnet50"  # whose preprocessing is measured: resize 256, crop 224
PHOTOGRAPH = (500, 375)  # width and height in pixels, about ImageNet's mean
NETWORK_OF_SMALL = "resnet20"
SMALL = 32  # height and width of the pictures whose number grows
CLASSES = 10


def main(
    pictures: Annotated[int, typer.Option(min=32, help="Pictures read in each turn.")] = 512,
    turns: Annotated[int, typer.Option(min=1, help="Turns of the loader, and of Pillow.")] = 5,
    batch: Annotated[int, typer.Option(min=1, help="Pictures in a batch.")] = 32,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes that read. Default: one per core.")] = None,
    few: Annotated[int, typer.Option(min=100, help="Pictures of the small folder.")] = 1_000,
    many: Annotated[int, typer.Option(min=100, help="Pictures of the large folder.")] = 100_000,
    backend: Annotated[
        Backend, typer.Option(help="Backend to evaluate and train in: torch, tf, jax or keras-torch.")
    ] = Backend.TORCH,
) -> None:
    """Measure reading pictures: speed and memory."""
    workers = workers or default_workers()
    with tempfile.TemporaryDirectory() as place, output.status("writing photographs") as say:
        root = Path(place)
        write_photographs(root / "photographs", pictures)
        read = folders.read(root / "photographs").parts[""].pictures
        ratios, speeds = [], []
        for turn in range(turns):
            say(f"reading, turn {turn + 1} of {turns}")
            order = (with_loader, with_pillow) if turn % 2 == 0 else (with_pillow, with_loader)
            found = {measure: measure(read, batch, workers) for measure in order}
            speeds.append(found[with_loader])
            ratios.append(found[with_loader] / found[with_pillow])
        output.show(
            f"{processor()}, {workers} processes, batches of {batch}, JPEGs of {PHOTOGRAPH[0]}x{PHOTOGRAPH[1]} for {NETWORK}",
            f"the loader: {statistics.median(speeds):,.0f} images/s, {statistics.median(ratios):.2f} of Pillow alone "
            f"({min(ratios):.2f} to {max(ratios):.2f} in {turns} turns)",
        )
        for command in ("evaluate", "train"):
            peaks = []
            for count in (few, many):
                say(f"{command}, {count:,} pictures")
                folder = root / f"{count}"
                write_small(folder, count)
                peaks.append(peak_memory(command, folder, backend, root))
            output.show(
                f"twins {command}, {backend}: {peaks[0]:,.0f} MB for {few:,} pictures, {peaks[1]:,.0f} MB for {many:,}, "
                f"{peaks[1] - peaks[0]:+,.0f} MB"
            )


def write_photographs(folder: Path, count: int) -> None:
    """Write JPEGs cut out of scikit-learn's two photographs."""
    from sklearn.datasets import load_sample_images

    generator = np.random.default_rng(0)
    whole = [Image.fromarray(image) for image in load_sample_images().images]
    for number in range(count):
        image = whole[number % len(whole)]
        left, top = (int(generator.integers(1 + side // 4)) for side in image.size)
        part = image.crop((left, top, left + 3 * image.width // 4, top + 3 * image.height // 4)).resize(PHOTOGRAPH)
        path = folder / f"{number % CLASSES}" / f"{number:06}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        part.save(path, quality=90)


def write_small(folder: Path, count: int) -> None:
    """Write JPEGs of random blotches, unless they are there."""
    generator = np.random.default_rng(0)
    for number in range(count):
        path = folder / f"{number % CLASSES}" / f"{number:06}.jpg"
        if number < CLASSES:
            path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            data = io.BytesIO()
            blotches = Image.fromarray(generator.integers(0, 256, (4, 4, 3), np.uint8))
            blotches.resize((SMALL, SMALL)).save(data, "JPEG")
            path.write_bytes(data.getvalue())


def with_loader(pictures: Pictures, batch: int, workers: int) -> float:
    """Images per second of the project's loader, from the first result on."""
    spec = networks.load(NETWORK)
    parts = [pictures[place : place + batch] for place in range(0, len(pictures), batch)]
    with Loader(workers) as loader:
        list(loader.map(batches.read_plain, [(part[:1], spec) for part in parts[: 2 * workers]]))  # the processes start
        start = time.perf_counter()
        count = sum(len(read.pixels) for read in loader.map(batches.read_plain, ((part, spec) for part in parts)))
        return count / (time.perf_counter() - start)


def with_pillow(pictures: Pictures, batch: int, workers: int) -> float:
    """Images per second that Pillow alone decodes, resizes and crops in as many processes, which send nothing back."""
    paths = pictures.paths()
    with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
        list(pool.map(decode, paths[: 2 * workers]))
        start = time.perf_counter()
        list(pool.map(decode, paths, chunksize=batch))
        return len(paths) / (time.perf_counter() - start)


def decode(path: str) -> None:
    """Decode, resize and crop one JPEG, as torchvision's usual transforms do: Resize(256), CenterCrop(224)."""
    with Image.open(path) as file:
        image = file.convert("RGB")
    width, height = (int(256 * side / min(image.size)) for side in image.size)
    left, top = round((width - 224) / 2), round((height - 224) / 2)
    image.resize((width, height), Image.Resampling.BILINEAR).crop((left, top, left + 224, top + 224)).load()


def peak_memory(command: str, folder: Path, backend: Backend, root: Path) -> float:
    """The largest PSS of a command on a folder and of its processes, in MB. Raises `Error` if it fails."""
    arguments = {
        "evaluate": [NETWORK_OF_SMALL, "--weights", str(root / "w.safetensors")],
        "train": ["cifar10_resnet20", "--set", "steps=300", "--out", str(root / f"run{folder.name}")],
    }[command]
    weights.save_state(root / "w.safetensors", weights.initial(NETWORK_OF_SMALL))
    line = [sys.executable, "-m", "twins", command, *arguments, "--data", str(folder), "--backend", backend]
    peak = 0.0
    with script.Children() as started:
        process = started.start(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        while process.poll() is None:
            peak = max(peak, sum(map(pss, [process.pid, *children(process.pid)])))
            time.sleep(0.2)
        if process.returncode:
            _, errors = process.communicate()
            raise Error(f"twins {command} failed: {errors.strip()}")
    return peak


def children(process: int) -> list[int]:
    """The processes that a process has started, and theirs."""
    try:
        direct = [int(word) for word in Path(f"/proc/{process}/task/{process}/children").read_text().split()]
    except OSError:
        return []
    return [*direct, *(inner for child in direct for inner in children(child))]


def pss(process: int) -> float:
    """The memory of a process in MB; what it shares with others is divided among them. 0 if it has ended."""
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
        return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("Pss:"))
    except (OSError, StopIteration):
        return 0.0


if __name__ == "__main__":
    script.start(main)
