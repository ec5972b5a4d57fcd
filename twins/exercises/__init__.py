"""The exercises of the lessons: their statements, and the references and known mistakes that they are judged by."""

import importlib
import re
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from shared.checks import Error, nearest

if TYPE_CHECKING:
    from .form import Exercise

FOLDER = Path(__file__).parent
SOLUTIONS = FOLDER.parents[1] / "parity_tests" / "solutions"  # in a clone of the project, not in an installation
LESSONS = {  # in their order, with their exercises
    "residual_block": ("conv", "batch_norm", "basic"),
    "spec": ("lenet", "max_pool", "bottleneck"),
    "degradation": ("shortcut_pad", "plain", "initialise"),
    "training_run": ("sgd", "adam", "loss"),
    "weights": ("conv", "flatten", "fold"),
    "dilation": ("conv", "dilate", "class_map"),
    "gridding": ("drn_b", "degridding", "upsample"),
    "preactivation": ("basic", "final", "bottleneck"),
}


class Statement(NamedTuple):
    """The text of an exercise, in Markdown."""

    title: str
    text: str
    hint: str

    @property
    def suffix(self) -> str:
        """Of the reader's file: ".json" for a spec, ".py" for code."""
        return ".json" if "`my.json`" in self.text else ".py"


def names() -> list[str]:
    """The names of all exercises, in the order of the lessons."""
    return [f"{lesson}.{exercise}" for lesson, members in LESSONS.items() for exercise in members]


def check_name(name: str) -> None:
    """Raise `Error`, with the nearest name, if no exercise is called that."""
    if name not in names():
        lesson, alike = ([n for n in names() if name == n.split(".")[place]] for place in (0, 1))
        if name.endswith((".py", ".json")):
            near = "; the name of the exercise comes before the file"
        elif lesson:
            near = f"; of this lesson: {', '.join(lesson)}"
        elif alike:
            near = f"; put the lesson before the name: {' or '.join(alike)}"
        else:
            near = nearest(name, names()) or "; `twins check` lists them"
        raise Error(f"no exercise is called {name!r}{near}")


def statement(name: str) -> Statement:
    """The statement of an exercise. Raises `Error` if there is none of the name."""
    check_name(name)
    text, _, hint = (FOLDER / f"{name}.md").read_text(encoding="utf-8").partition("\n## Hint\n")
    title, _, text = text.strip().removeprefix("# ").partition("\n")
    return Statement(title, text.strip(), hint.strip())


def load(name: str) -> "Exercise":
    """The exercise itself. Raises `Error` if there is none of the name."""
    check_name(name)
    lesson, _, exercise = name.partition(".")
    module = importlib.import_module(f"{__name__}.{lesson}")
    found: Exercise = module.EXERCISES[exercise]
    return found


def solutions(name: str) -> list[Path]:
    """The reference solutions: one per framework, or a spec. Raises `Error` if the project is installed without them."""
    check_name(name)
    paths = [path for path in sorted((SOLUTIONS / name).glob("*")) if re.fullmatch(r"(torch|keras)\.py|spec\.json", path.name)]
    if not paths:
        raise Error(f"the solutions of {name} are in a clone of the project, in parity_tests/solutions/{name}; not here")
    return paths
