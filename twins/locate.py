"""Where in pictures a network sees a class, and how often that agrees with the boxes of a folder.

Boxes are [left, top, right, bottom] in pixels of the original picture, right and bottom exclusive.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from shared import images, networks, shapes
from shared.checks import Error, Value, check_keys, is_number, nearest, whole
from shared.files import read_json
from shared.folders import Pictures
from shared.spec import Spec

from . import boxes, datasets, predict
from .backends import Engine
from .boxes import Localisation
from .ladder import farthest

Entry = dict[str, Any]  # a picture: "image", its path, and where they are known "boxes" and "class"


def class_number(name: str, spec: Spec) -> int:
    """The number of a class that is given as a number or as a name.

    Raises `Error` if the network has no such class, or several of that name.
    """
    count, names = shapes.layers(spec)[-1].shape[0], networks.class_names(spec) or []
    digits = str(name)
    if digits.isdecimal():
        if len(digits) < 20 and int(digits) < count:
            return int(digits)
        raise Error(f"class {digits[:60]}: {spec['name']} has {count:,} classes, 0 to {count - 1:,}")
    known: dict[str, list[int]] = {}
    for number, label in enumerate(names):
        for word in {*label.split(", "), label}:
            known.setdefault(word, []).append(number)
    if name not in known:
        expected = nearest(name, known) or f"; expected a number, 0 to {count - 1:,}" + ", or one of its names" * bool(names)
        raise Error(f"{spec['name']} has no class {name!r}{expected}")
    if len(known[name]) > 1:
        raise Error(f"{name!r} is a name of the classes {' and '.join(map(str, known[name]))}; expected one of these numbers")
    return known[name][0]


def read_boxes(folder: str | Path, spec: Spec) -> list[Entry]:
    """The pictures of a folder with their boxes, and their classes if known: what its `boxes.json` says.

    That is a list of {"file": a name in the folder or in its subfolder images, "boxes": [[left, top, right, bottom], …]} with,
    if known, the "class" of what is in the boxes, a number or a name, and the "width" and "height" of the picture. Raises
    `Error` for what is missing, not of this form, or outside its picture.
    """
    path = Path(folder) / "boxes.json"
    if not Path(folder).is_dir():
        raise Error(f"{folder}: expected a folder with pictures and a boxes.json")
    listed = read_json(path)
    if type(listed) is not list or not listed:
        raise Error(f'{path}: expected a list of objects with "file" and "boxes"')
    entries = []
    for place, item in enumerate(listed, start=1):
        try:
            if type(item) is not dict:
                raise Error('expected an object with "file" and "boxes"')
            check_keys(item, "file boxes", "class width height", _KEYS)
            entries.append(_entry(Path(folder), item, spec))
        except Error as error:
            called = f" ({item['file']})" if type(item) is dict and type(item.get("file")) is str else ""
            raise Error(f"{path}: entry {place}{called}: {error}") from None
    return entries


def read_pictures(path: str | Path, spec: Spec) -> list[Entry]:
    """The pictures of a folder or a CSV of classes, as `predict.labelled_images` chooses them, with their classes.

    Where the network does not have these classes, that of each is None. Raises `Error` for a folder that is not in order.
    """
    name = os.path.join(os.curdir, path)  # else a data set of this name may be meant, digits or one in TWINS_DATA
    try:
        test = predict.labelled_images(name, spec)
        classes: list[int | None] = test.y.tolist()
    except Error:
        test = datasets.load_test(name)
        classes = [None] * len(test.x)
    assert isinstance(test.x, Pictures)
    return [{"image": Path(file), "class": number} for file, number in zip(test.x.paths(), classes, strict=True)]


def _are_boxes(value: Any) -> bool:
    if type(value) is not list or not value or not all(type(box) is list and len(box) == 4 for box in value):
        return False
    return all(is_number(n) for box in value for n in box)


_KEYS = {
    "file": Value(lambda v: type(v) is str and v, "the name of a picture", {"type": "string"}),
    "boxes": Value(_are_boxes, "a list of boxes, [left, top, right, bottom] in pixels", {"type": "array"}),
    "class": Value(lambda v: whole(0).accepts(v) or type(v) is str, "a number or the name of a class", {}),
    **dict.fromkeys(("width", "height"), whole(1)),
}


def _entry(folder: Path, item: dict[str, Any], spec: Spec) -> Entry:
    path = next((path for path in (folder / item["file"], folder / "images" / item["file"]) if path.is_file()), None)
    if not path:
        raise Error(f"there is no such picture in {folder}, nor in its folder images")
    size = None
    try:
        size = images.picture_size(path)
    except Error:
        pass  # reported when its turn comes: the other pictures are still processed
    if size and (item.get("width", size[0]), item.get("height", size[1])) != size:
        given = f"{item.get('width', '…')}x{item.get('height', '…')}"
        raise Error(f"its boxes are for a picture of {given} pixels, this one has {shapes.text(size)}")
    for box in item["boxes"]:
        if box[0] >= box[2] or box[1] >= box[3]:
            raise Error(f"the box {box} is empty; expected [left, top, right, bottom]")
        if size and (min(box) < 0 or box[2] > size[0] or box[3] > size[1]):
            raise Error(f"the box {box} is not inside the picture, {shapes.text(size)} pixels")
    known = class_number(item["class"], spec) if "class" in item else None
    return {"image": path, "boxes": item["boxes"], "class": known}


def locate_pictures(
    engines: Sequence[Engine], spec: Spec, entries: Iterable[Entry], target: int | None, threshold: float, alone: bool = False
) -> Iterator[tuple[dict[str, Any], np.ndarray | None, Localisation | None]]:
    """For each entry, as it is done: (result, picture, localisation); the result is a dictionary of

    - "image": the path; "size": its width and height in pixels;
    - "class", "name", "probability": the class that was looked for: `target`, or the entry's "class", or the likeliest;
    - "box", "peak", "response": its box, or None; where the response that the box is of is largest, or None; that response;
    - of several engines, "same_box": whether all have the same class, box and peak; "difference": how far class maps are from
      the first's at most, ||a - b|| / ||a||;

    or of "image" and "error", with no picture and no localisation, for a file that cannot be read. All but "same_box" and
    "difference" is the first engine's. `alone` is that of `boxes.localise`. Raises `Error` for logits that are not finite.
    """
    names = networks.class_names(spec)
    for entry in entries:
        result: dict[str, Any] = {"image": str(entry["image"])}
        try:
            picture, batch = predict.read_image(entry["image"], spec)
        except Error as error:
            yield result | {"error": str(error)}, None, None
            continue
        number = entry.get("class") if target is None else target
        maps = [predict.check_finite(engine, engine.class_maps(batch))[0].astype(np.float64) for engine in engines]
        each = [boxes.localise(m, images.window(picture, spec), number, alone) for m in maps]
        described = [_describe(localisation, threshold, names) for localisation in each]
        result["size"] = [picture.shape[1], picture.shape[0]]
        result |= described[0] | {"probability": float(predict.softmax(maps[0].mean((1, 2)))[each[0].target])}
        if len(engines) > 1:
            first, *others = ([of_engine[key] for key in ("class", "box", "peak")] for of_engine in described)
            result["same_box"] = all(other == first for other in others)
            result["difference"] = farthest(maps[0], maps[1:])[0]
        yield result, picture, each[0]


def _describe(localisation: Localisation, threshold: float, names: list[str] | None) -> dict[str, Any]:
    box = localisation.box(threshold)
    return {
        "class": localisation.target,
        "name": names and names[localisation.target],
        "box": box and [round(side, 2) for side in box],
        "peak": localisation.peak and [round(side, 2) for side in localisation.peak],
        "response": float(localisation.response.max()),
    }


def summarise(
    located: Sequence[tuple[dict[str, Any], Localisation | None]], entries: Sequence[Entry], threshold: float, known: bool
) -> dict[str, Any]:
    """The `boxes.scores` of what was located at the threshold, with those at every threshold of `boxes.SWEEP` as "sweep".

    Besides, "whole_picture" has the scores of a box that is always the whole picture, and, of several engines, "same_boxes"
    counts the pictures with the same class, box and peak in all. `known` says that the class looked for is that of each
    picture. An empty dictionary if no picture could be read.
    """
    read = [(result, local, entry) for (result, local), entry in zip(located, entries, strict=True) if local is not None]
    if not read:
        return {}
    localisations, truths = [local for _, local, _ in read], [entry["boxes"] for *_, entry in read]
    known = known or all(entry["class"] is not None for *_, entry in read)
    summary: dict[str, Any] = boxes.scores(localisations, truths, threshold, known)
    summary["whole_picture"] = boxes.whole_picture_scores([result["size"] for result, *_ in read], truths)
    summary["sweep"] = {at: boxes.scores(localisations, truths, at, known) for at in boxes.SWEEP}
    if "same_box" in read[0][0]:
        summary["same_boxes"] = sum(result["same_box"] for result, *_ in read)
    return summary
