"""Class maps to boxes: where in a picture a network for classification sees a class, in NumPy.

A response is one class of the class maps of one picture, (height, width). Boxes are [left, top, right, bottom] in pixels of the
original picture, right and bottom exclusive, and need not be whole numbers.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from . import data as datasets
from . import predict, shapes
from .compare import relative
from .interpolation import interpolation
from .spec import Error, check_keys, nearest, number, read_json, whole
from .weights import aside

RIGHT = 0.5  # the intersection over union with the truth that a box has to exceed
SWEEP = tuple(round(0.05 * step, 2) for step in range(20))  # thresholds


def upsampled(response, height, width):
    """The response at another size, bilinearly."""
    return interpolation(len(response), height) @ response @ interpolation(response.shape[1], width).T


def likeliest(maps):
    """The most probable class at each position, (height, width), of class maps (classes, height, width)."""
    return maps.argmax(0)


def exclusive(maps):
    """Class maps that are 0 wherever another class is the most probable.

    The boxes of Yu, Koltun, Funkhouser 2017, arXiv:1705.09914, section 3, hold such positions alone. There the threshold is
    a number; here it is a share of the largest response, which means the same for every network.
    """
    return np.where(np.arange(len(maps))[:, None, None] == likeliest(maps), maps, 0.0)


def box(response, window, threshold):
    """The smallest box that holds all positions whose response exceeds a share `threshold` of the largest.

    Zhou et al. 2016, arXiv:1512.04150, section 3.2, have a share of 0.2.
    A position is a rectangle, one of a grid over the `window`, as `shared.data.window` gives it. It is None, no box, where no
    response exceeds 0; `threshold` is at least 0 and below 1.
    """
    above = response > threshold * response.max()
    if not above.any():
        return None
    rows, columns = np.flatnonzero(above.any(1)), np.flatnonzero(above.any(0))
    return [*_place(columns[0], rows[0], response, window), *_place(columns[-1] + 1, rows[-1] + 1, response, window)]


def peak(response, window):
    """The point [across, down], in pixels of the original picture, in the middle of the position with the largest response."""
    row, column = np.unravel_index(response.argmax(), response.shape)
    return _place(column + 0.5, row + 0.5, response, window)


def _place(column, row, response, window):
    left, top, right, bottom = window
    height, width = response.shape
    return [float(left + column / width * (right - left)), float(top + row / height * (bottom - top))]


def iou(one, other):
    """The area that two boxes share over the area that they cover; 0 where one of them is None."""
    if one is None or other is None:
        return 0.0
    width, height = (max(0.0, min(one[i + 2], other[i + 2]) - max(one[i], other[i])) for i in (0, 1))
    shared = width * height
    return shared / (_area(one) + _area(other) - shared)


def _area(box):
    return (box[2] - box[0]) * (box[3] - box[1])


def inside(point, box):
    """Whether a point [across, down] is in a box; what is on its right or bottom edge is not."""
    return box[0] <= point[0] < box[2] and box[1] <= point[1] < box[3]


def number_of(name, spec):
    """The number of a class that is given as a number or as a name.

    Raises `Error` where the network has no such class, or several of that name.
    """
    count, names = shapes.layers(spec)[-1].shape[0], predict.classes(spec) or []
    if str(name).isdecimal():
        if int(name) < count:
            return int(name)
        raise Error(f"class {name}: {spec['name']} has {count:,} classes, 0 to {count - 1:,}")
    known = {}
    for place, label in enumerate(names):
        for word in {*label.split(", "), label}:
            known.setdefault(word, []).append(place)
    if name not in known:
        wanted = nearest(name, known) or f"; expected a number, 0 to {count - 1:,}" + ", or one of its names" * bool(names)
        raise Error(f"{spec['name']} has no class {name!r}{wanted}")
    if len(known[name]) > 1:
        raise Error(f"{name!r} is a name of the classes {' and '.join(map(str, known[name]))}; expected one of these numbers")
    return known[name][0]


def read(folder, spec):
    """The pictures of a folder, their boxes, and their classes where they are known: what its `boxes.json` says.

    That is a list of {"file": a name in the folder or in its folder images, "boxes": [[left, top, right, bottom], …]} with, if
    known, the "class" of what is in the boxes, a number or a name, and the "width" and "height" of the picture. Gives
    dictionaries with "image", the path, "boxes" and "class", a number or None. Raises `Error` for what is missing, not of this
    form, or outside its picture.
    """
    path = Path(folder) / "boxes.json"
    if not Path(folder).is_dir():
        raise Error(f"{folder}: expected a folder with pictures and a boxes.json")
    entries = read_json(path)
    if type(entries) is not list or not entries:
        raise Error(f'{path}: expected a list of objects with "file" and "boxes"')
    found = []
    for place, entry in enumerate(entries, start=1):
        try:
            if type(entry) is not dict:
                raise Error('expected an object with "file" and "boxes"')
            check_keys(entry, "file boxes", "class width height", _ENTRY)
            found.append(_read(Path(folder), entry, spec))
        except Error as error:
            called = f" ({entry['file']})" if type(entry) is dict and type(entry.get("file")) is str else ""
            raise Error(f"{path}: entry {place}{called}: {error}") from None
    return found


def _boxes(value):
    numbers = type(value) is list and value and all(type(b) is list and len(b) == 4 for b in value) and sum(value, [])
    return numbers and all(type(n) in (int, float) and (n == 0 or number(abs(n))) for n in numbers)


_ENTRY = {
    "file": (lambda v: type(v) is str and v, "the name of a picture"),
    "boxes": (_boxes, "a list of boxes, [left, top, right, bottom] in pixels"),
    "class": (lambda v: whole(0)[0](v) or type(v) is str, "a number or the name of a class"),
    **dict.fromkeys(("width", "height"), whole(1)),
}


def _read(folder, entry, spec):
    path = next((path for path in (folder / entry["file"], folder / "images" / entry["file"]) if path.is_file()), None)
    if not path:
        raise Error(f"there is no such picture in {folder}, nor in its folder images")
    try:
        width, height = datasets.size(path)
    except Error:
        width = None  # it is told when its turn comes: the other pictures go on
    if width and (entry.get("width", width), entry.get("height", height)) != (width, height):
        given = f"{entry.get('width', '…')}x{entry.get('height', '…')}"
        raise Error(f"its boxes are for a picture of {given} pixels, this one has {width}x{height}")
    for box in entry["boxes"]:
        if box[0] >= box[2] or box[1] >= box[3]:
            raise Error(f"the box {box} is empty; expected [left, top, right, bottom]")
        if width and (min(box) < 0 or box[2] > width or box[3] > height):
            raise Error(f"the box {box} is not inside the picture, {width}x{height} pixels")
    known = number_of(entry["class"], spec) if "class" in entry else None
    return {"image": path, "boxes": entry["boxes"], "class": known}


class Sight(NamedTuple):
    """What a network has answered to one picture."""

    top: list[int]  # its likeliest classes, the likeliest first
    wanted: int  # the class that is looked for
    response: np.ndarray  # of that class, where it may be in a box
    peak: list[float]  # where that response is largest
    window: tuple[float, float, float, float]  # what of the picture the network saw

    def box(self, threshold):
        return box(self.response, self.window, threshold)


def sight(maps, window, wanted=None, alone=False):
    """The `Sight` of class maps (classes, height, width); the class that is looked for is `wanted`, or the likeliest.

    Its box is of all positions, or, with `alone`, of the class's `exclusive` ones.
    """
    top = np.argsort(-maps.mean((1, 2)), kind="stable")[: predict.SHOWN].tolist()
    wanted = top[0] if wanted is None else wanted
    response = (exclusive(maps) if alone else maps)[wanted].copy()  # a view would keep all maps of all pictures
    return Sight(top, wanted, response, peak(maps[wanted], window), window)


def scores(sights, truths, threshold, known=False):
    """How well boxes were found: a dictionary of

    - "localisation_error": the share of pictures where the box of the class that was looked for has an intersection over
      union of no more than 0.5 with every true box;
    - "mean_iou": the mean over the pictures of the largest intersection over union with a true box;
    - "pointing_accuracy": the share where the peak is in a true box, whatever the threshold and the likeliest class;
    - where the class that was looked for is `known` to be right, "top1_classification_error", "top5_…", the shares where it
      is not the likeliest or among the five, and "top1_localisation_error", "top5_…", where it is not or its box is wrong.

    `truths` is a list of boxes for each picture.
    """
    overlaps = np.array([_overlap(s.box(threshold), boxes) for s, boxes in zip(sights, truths, strict=True)])
    found = {
        "localisation_error": _share(overlaps <= RIGHT),
        "mean_iou": float(overlaps.mean()),
        "pointing_accuracy": _share([any(inside(s.peak, b) for b in t) for s, t in zip(sights, truths, strict=True)]),
    }
    for count in (1, predict.SHOWN) if known else ():
        missed = np.array([s.wanted not in s.top[:count] for s in sights])
        found[f"top{count}_classification_error"] = _share(missed)
        found[f"top{count}_localisation_error"] = _share(missed | (overlaps <= RIGHT))
    return found


def guessed(sizes, truths):
    """The scores of a box that is always the whole picture, and of its middle; `sizes` are the pictures' (width, height)."""
    overlaps = np.array([_overlap([0, 0, *size], boxes) for size, boxes in zip(sizes, truths, strict=True)])
    middles = [(width / 2, height / 2) for width, height in sizes]
    return {
        "localisation_error": _share(overlaps <= RIGHT),
        "mean_iou": float(overlaps.mean()),
        "pointing_accuracy": _share([any(inside(m, b) for b in t) for m, t in zip(middles, truths, strict=True)]),
    }


def _overlap(box, boxes):
    return max(iou(box, other) for other in boxes)


def _share(these):
    return float(np.mean(these))


def pictures(engines, spec, entries, wanted, threshold, alone=False, seen=lambda about, picture, sight: None):
    """What the engines see where: for each entry, with its path as "image", a dictionary of

    - "image": the path; "size": its width and height in pixels;
    - "class", "name", "probability": the class that was looked for: `wanted`, or the entry's "class", or the likeliest;
    - "box", "peak", "response": its box, or None; where its response is largest, and that response;
    - of two engines, "same_box": whether both have the same class, box and peak; "difference": how far apart their class maps
      are, ||a - b|| / ||a||;

    or of "image" and "error" for a file that cannot be read; and a `Sight`, or None, for each, with `alone` as there. All but
    "same_box" and "difference" is the first engine's. `seen` hears of each as it comes.
    """
    names, found, sights = predict.classes(spec), [], []
    for entry in entries:
        about, picture = {"image": str(entry["image"])}, None
        try:
            picture, batch = predict.read(entry["image"], spec)
        except Error as error:
            about["error"] = str(error)
            sights.append(None)
        else:
            number = entry.get("class") if wanted is None else wanted
            maps = [predict.finite(engine, engine.class_maps(batch))[0].astype(np.float64) for engine in engines]
            each = [sight(m, datasets.window(picture, spec), number, alone) for m in maps]
            told = [_told(s, threshold, names) for s in each]
            about["size"] = [picture.shape[1], picture.shape[0]]
            about |= told[0] | {"probability": float(predict.softmax(maps[0].mean((1, 2)))[each[0].wanted])}
            if len(engines) > 1:
                about["same_box"] = all(told[0][key] == told[1][key] for key in ("class", "box", "peak"))
                about["difference"] = relative(*maps)
            sights.append(each[0])
        found.append(about)
        seen(about, picture, sights[-1])
    return found, sights


def _told(sight, threshold, names):
    found = sight.box(threshold)
    return {
        "class": sight.wanted,
        "name": names and names[sight.wanted],
        "box": found and [round(side, 2) for side in found],
        "peak": [round(side, 2) for side in sight.peak],
        "response": float(sight.response.max()),
    }


def draw(picture, sight, path, threshold, truths=()):
    """Draw the response over the picture, (height, width, 3), with its box in red, its peak, and true boxes in green."""
    from matplotlib import colormaps

    height, width = picture.shape[:2]
    left, top, right, bottom = (round(side) for side in sight.window)
    response = np.clip(sight.response, 0, None)
    heat = upsampled(response / (response.max() or 1), bottom - top, right - left)
    drawn = picture.astype(np.float64)
    rows, columns = slice(max(top, 0), bottom), slice(max(left, 0), right)
    place = drawn[rows, columns]
    heat = heat[: place.shape[0], : place.shape[1]]
    place[:] = 0.5 * place + 127.5 * colormaps["inferno"](heat)[..., :3]
    image = Image.fromarray(drawn.round().astype(np.uint8))
    pen, broad = ImageDraw.Draw(image), max(2, min(height, width) // 120)
    for truth in truths:
        pen.rectangle(_corners(truth), outline="lime", width=broad)
    found = sight.box(threshold)
    if found:
        pen.rectangle(_corners(found), outline="red", width=broad)
    across, down = sight.peak
    pen.ellipse([across - 2 * broad, down - 2 * broad, across + 2 * broad, down + 2 * broad], outline="white", width=broad)
    with aside(path) as temporary:
        image.save(temporary)


def _corners(box):
    """The outermost pixels of a box; one that is narrower than a pixel has the pixel that it begins in."""
    left, top, right, bottom = box
    return [left, top, max(left, right - 1), max(top, bottom - 1)]


def draw_sweep(sweep, path, title=""):
    """Draw scores, {threshold: `scores`}, over the thresholds, into a file ending in one of `shared.curves.KINDS`."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 4), layout="constrained")
    for key, label in (("localisation_error", "localisation error"), ("mean_iou", "mean intersection over union")):
        axes.plot(list(sweep), [found[key] for found in sweep.values()], "o-", markersize=3, label=label)
    axes.set(xlabel="threshold, of the largest response", ylim=(0, 1))
    axes.set_title(title, parse_math=False)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    with aside(path) as temporary:
        figure.savefig(temporary, dpi=120)
    pyplot.close(figure)
