"""The exercises of the lesson on gridding: DRN-C, DRN-B, upsampling."""

from typing import Any

import numpy as np

from shared import networks
from shared.interpolation import interpolation_matrix
from shared.spec import Spec

from .form import Network, Suspect, Tensors, changed, without


def _spec(name: str) -> Spec:
    return {key: networks.load(name)[key] for key in ("name", "input", "layers")}


DEGRIDDING = Network(
    lambda: _spec("drn_c_18_small"),
    [
        Suspect(
            "unchanged",
            "this is DRN-B: `layer7` and `layer8` still have their shortcuts, which carry the grid past the convolutions",
            None,
            lambda spec: changed(spec, "layer7 layer8", shortcut=None),
        ),
        Suspect("first-only", "`layer8` still has its shortcut", None, lambda spec: changed(spec, "layer8", shortcut=None)),
        Suspect(
            "last-only",
            "`layer7` still has its shortcut: of the added blocks, only the last is without",
            None,
            lambda spec: changed(spec, "layer7", shortcut=None),
        ),
        Suspect(
            "all-without",
            "you took the shortcuts of all blocks away; those before the added ones are needed to train, and stay",
            None,
            lambda spec: changed(spec, [f"layer{n}" for n in range(1, 9)], shortcut="none"),
        ),
        Suspect(
            "pad",
            'a shortcut "pad" where the shape stays is the identity: it carries the grid as well',
            None,
            lambda spec: changed(spec, "layer7 layer8", shortcut="pad"),
        ),
        Suspect(
            "no-dilation",
            "`layer7` has lost its dilation of 2: the step from 4 to 1 at once leaves the grid",
            None,
            lambda spec: changed(spec, "layer7", dilation=None),
        ),
    ],
    (64, 49),
)


DRN_B = Network(
    lambda: _spec("drn_b_18_small"),
    [
        Suspect(
            "not-added",
            "`layer7` and `layer8` are missing: without them the dilation ends at 4, and the grid stays",
            None,
            lambda spec: without(spec, "layer7", "layer8"),
        ),
        Suspect(
            "first-dilation",
            "as in DRN-A, the first convolutions of `layer5` and `layer6` have half the dilation of the "
            "second; DRN-B's have the "
            "whole",
            None,
            lambda spec: changed(changed(spec, "layer5", first_dilation=1), "layer6", first_dilation=2),
        ),
        Suspect(
            "no-descent",
            "the added blocks keep the dilation of 4; they should lower it step by step",
            None,
            lambda spec: changed(spec, "layer7 layer8", dilation=4),
        ),
        Suspect(
            "undilated-end",
            "`layer7` is not dilated: the dilation falls from 4 to 1 at once",
            None,
            lambda spec: changed(spec, "layer7", dilation=None),
        ),
        Suspect(
            "degridded",
            "this is DRN-C: your added blocks have no shortcuts",
            None,
            lambda spec: changed(spec, "layer7 layer8", shortcut="none"),
        ),
        Suspect("undilated", "nothing is dilated", None, lambda s: changed(s, "layer5 layer6 layer7", dilation=None)),
    ],
    (64, 49),
)

FACTOR = 8


def _matrix(pixels: int, flaw: Any) -> np.ndarray:
    """(outputs, inputs): the weight of each input pixel in each output pixel."""
    wide = FACTOR * pixels
    if flaw is None:
        return np.asarray(interpolation_matrix(pixels, wide), float)
    places = np.arange(wide)
    centres = {
        "aligned-corners": places * (pixels - 1) / (wide - 1),
        "corner-pixels": places / FACTOR,
    }.get(flaw, (places + 0.5) / FACTOR - 0.5)
    if flaw == "nearest":
        return np.eye(pixels)[places // FACTOR]
    if flaw != "transposed-convolution":
        centres = np.clip(centres, 0, pixels - 1)
    return np.maximum(0, 1 - np.abs(centres[:, None] - np.arange(pixels)))


def _upsample(arguments: tuple[Any, ...], flaw: Any) -> np.ndarray:
    (maps,) = arguments
    rows, columns = (_matrix(n, flaw) for n in maps.shape[2:])
    return np.einsum("ih,jw,bchw->bcij", rows, columns, maps)


def _upsample_gradients(arguments: tuple[Any, ...], projection: np.ndarray) -> dict[int, np.ndarray]:
    (maps,) = arguments
    rows, columns = (_matrix(n, None) for n in maps.shape[2:])
    return {0: np.einsum("ih,jw,bcij->bchw", rows, columns, projection)}


def _maps() -> list[tuple[Any, ...]]:
    generator = np.random.default_rng(0)
    return [(generator.standard_normal((2, 3, 4, 5)),), (generator.standard_normal((2, 2, 3, 3)),)]


UPSAMPLE = Tensors(
    "upsample",
    _maps(),
    _upsample,
    [
        Suspect(
            "aligned-corners",
            "you align the corners: the centres of the first and last pixels stay at the ends, and what lies "
            "between is spread "
            "over too many pixels (align_corners=True)",
            "upsample-corners",
        ),
        Suspect(
            "corner-pixels",
            "your output pixel i stands at i / 8: half a pixel too far left and up; pixels have centres",
            "upsample-corners",
        ),
        Suspect("nearest", "you repeat each pixel eight times; interpolate between them"),
        Suspect(
            "transposed-convolution",
            "right inside, but your map fades at its borders, as a transposed convolution does, which adds "
            "zeros there; beyond the "
            "last pixel its value continues",
        ),
    ],
    ("map",),
    "map",
    _upsample_gradients,
    arguments=("maps",),
)

EXERCISES = {"degridding": DEGRIDDING, "drn_b": DRN_B, "upsample": UPSAMPLE}
