"""The microscope: what one unit of a network reads, as a web page that works without a server.

A unit is a position (row, column) of a layer's map, counted from 0. Map 0 is the image, map n the output of the n-th layer of
`layers`. Fields are (height, width). The page itself computes what a unit can read, from the windows of each layer; what it
responds to is measured here, by gradients.
"""

import base64
import functools
import io
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from shared import networks, shapes
from shared.checks import Error
from shared.files import write_text
from shared.spec import Spec

from .backends import Engine

WEB = Path(__file__).parent / "web"
PAGE = ("microscope.html", "microscope.css", "microscope.js")
DATA = "microscope-data.js"
INPUTS, SEED = 4, 0  # images of noise that a gradient is averaged over
SIDE = 48  # numbers along a side of a stored effective field, at most
HEARD = 1 - 0.9545  # of the peak: what Luo et al. 2016 count as within the effective field
PICTURE = 224  # pixels along its side


def layers(spec: Spec) -> list[shapes.Row]:
    """The layers of the chain that move windows over a map. All others read only the position that they write.

    Raises `Error` for a network whose layers have no maps.
    """
    rows = [row for row in shapes.layers(networks.headless(spec)) if row.ways != ((),)]
    if not rows or not all(row.ways for row in rows):
        raise Error(f"{spec['name']} has no convolution or pool before its classifier: there is no map to show")
    return rows


def reading(rows: Sequence[shapes.Row], layer: int, unit: tuple[int, int], onto: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(what a unit of map `layer` reads of map `onto`, as booleans; how much of each position, float64).

    A position is read if a path leads from it to the unit. How much: each window divides what it passes on equally among its
    positions, those in the padding included, and each branch of a block passes all of it on. For random weights of equal
    variance that is the expected square of a gradient, up to a factor and without ReLU.
    """
    read = np.zeros(rows[layer - 1].shape[1:], bool)
    read[unit] = True
    share = read.astype(np.float64)
    for row in reversed(rows[onto:layer]):
        backs = [_back(read, share, way) for way in row.ways]
        read = functools.reduce(np.logical_or, (back[0] for back in backs))
        share = sum((back[1] for back in backs[1:]), backs[0][1])
    return read, share


def _back(read: np.ndarray, share: np.ndarray, way: Sequence[shapes.Window]) -> tuple[np.ndarray, np.ndarray]:
    """Both arrays of `reading`, taken from the output of a branch to its input."""
    for window in reversed(way):
        read = _spread(read.astype(np.float64), window) > 0
        share = _spread(share, window) / window.kernel**2
    return read, share


def _spread(values: np.ndarray, window: shapes.Window) -> np.ndarray:
    """For each position of the map that a window reads, the sum of the values of all positions that it is read by."""
    taps = [window.dilation * tap for tap in range(window.kernel)]
    reach = [window.stride * (side - 1) + 1 for side in values.shape]
    padded = [
        max(side + before, reached + taps[-1])
        for side, before, reached in zip(window.size, (window.top, window.left), reach, strict=True)
    ]
    result = np.zeros(padded)
    for row in taps:
        for column in taps:
            result[row : row + reach[0] : window.stride, column : column + reach[1] : window.stride] += values
    return result[window.top : window.top + window.size[0], window.left : window.left + window.size[1]]


def field(rows: Sequence[shapes.Row], layer: int, unit: tuple[int, int], onto: int = 0) -> tuple[int, int, int, int]:
    """The theoretical receptive field of a unit: (top, left, bottom, right) in positions of map `onto`, the last included.

    It may reach beyond the map, into the padding.
    """
    top, left = bottom, right = unit
    for row in reversed(rows[onto:layer]):
        boxes = []
        for way in row.ways:
            box = (top, left, bottom, right)
            for w in reversed(way):
                more = w.dilation * (w.kernel - 1)
                box = (
                    box[0] * w.stride - w.top, box[1] * w.stride - w.left,
                    box[2] * w.stride - w.top + more, box[3] * w.stride - w.left + more,
                )  # fmt: skip
            boxes.append(box)
        tops, lefts, bottoms, rights = zip(*boxes, strict=True)
        top, left, bottom, right = min(tops), min(lefts), max(bottoms), max(rights)
    return top, left, bottom, right


def centre(row: shapes.Row) -> tuple[int, int]:
    """The unit in the middle of a layer's map."""
    return row.shape[1] // 2, row.shape[2] // 2


def effective(engine: Engine, spec: Spec, rows: Sequence[shapes.Row]) -> dict[str, np.ndarray]:
    """{layer: effective receptive field of its central unit}, (height, width) of the image, its largest value 1.

    As Luo, Li, Urtasun, Zemel 2016 (arXiv:1701.04128): the absolute gradient of a unit with respect to each pixel, here summed
    over the colours and averaged over `INPUTS` images of normal noise. The unit's channel is the one of the largest activation.
    """
    images = np.random.default_rng(SEED).standard_normal((INPUTS, *spec["input"]))
    gradients = engine.unit_gradients(images, {row.name: centre(row) for row in rows})
    fields = {name: np.abs(gradient).sum(1, dtype=np.float64).mean(0) for name, gradient in gradients.items()}
    for name, values in fields.items():
        if not np.isfinite(values).all():
            raise Error(f"{spec['name']}: layer {name!r} has non-finite gradients with its initial weights")
    return {name: values / (values.max() or 1) for name, values in fields.items()}


def encode(values: np.ndarray) -> dict[str, Any]:
    """An effective field for the page: cropped to what is not 0 in 8 bits, averaged in blocks, in base64.

    `box` is (top, left) of the first block and `block` the side of one, in pixels; `shape` counts blocks; `side` is that of the
    square whose area is the number of pixels above `HEARD`.
    """
    rows, columns = (np.flatnonzero(values.max(axis) >= 1 / 510) for axis in (1, 0))
    if not len(rows):
        rows = columns = np.zeros(1, int)
    top, left = int(rows[0]), int(columns[0])
    cropped = values[top : rows[-1] + 1, left : columns[-1] + 1]
    block = math.ceil(max(cropped.shape) / SIDE)
    height, width = (-(-side // block) for side in cropped.shape)
    whole = np.zeros((height * block, width * block))
    whole[: cropped.shape[0], : cropped.shape[1]] = cropped
    means = whole.reshape(height, block, width, block).mean((1, 3))
    quantised = np.rint(255 * means / (means.max() or 1)).astype(np.uint8)
    return {
        "box": [top, left],
        "block": block,
        "shape": [height, width],
        "side": round(math.sqrt((values > HEARD).sum()), 1),
        "values": base64.b64encode(quantised.tobytes()).decode(),
    }


def summary(spec: Spec, rows: Sequence[shapes.Row], fields: dict[str, np.ndarray], framework: str) -> dict[str, Any]:
    """A network as the page reads it."""
    described = [
        {
            "name": row.name,
            "type": row.type,
            "map": row.shape[1:],
            "stride": row.stride,
            "dilations": row.dilations,
            "ways": [[[*window[:5], *window.size] for window in way] for way in row.ways],
            "centre": centre(row),
            "effective": encode(fields[row.name]),
        }
        for row in rows
    ]
    return {
        "name": spec["name"],
        "title": spec.get("title", spec["name"]),
        "input": spec["input"][1:],
        "framework": framework,
        "layers": described,
    }


def write(folder: Path, summaries: Sequence[dict[str, Any]], command: str) -> None:
    """Write the page and its data, which begin with the command, into a folder. Raises `Error` if it cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Error(f"{folder}: cannot be created: {error.strerror}") from None
    data = {"inputs": INPUTS, "seed": SEED, "picture": _picture(), "networks": summaries}
    lines = json.dumps(data, separators=(",", ":")).replace('{"name":', '\n{"name":').replace("<", "\\u003c")
    write_text(folder / DATA, f"// Written by: {command}\nwindow.MICROSCOPE = {lines};\n")
    for name in PAGE:
        to = "index.html" if name.endswith(".html") else name
        write_text(folder / to, (WEB / name).read_text(encoding="utf-8"))


def _picture() -> str:
    """The picture behind the fields, as a data URL: a portrait of Grace Hopper, in the public domain, that Matplotlib has."""
    from matplotlib import cbook

    with Image.open(cbook.get_sample_data("grace_hopper.jpg", asfileobj=False)) as picture:
        square = picture.convert("L").crop((0, 0, picture.width, picture.width)).resize((PICTURE, PICTURE))
    stream = io.BytesIO()
    square.save(stream, "JPEG", quality=75, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode()
