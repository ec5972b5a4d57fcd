"""Judge a reader's code by the ladder of parity: where it first diverges from the reference, how far, and by which mistake.

`run` judges in a separate process, with a time limit, since the reader's file is run; `judge` in this one.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from shared import limits
from shared.checks import Error
from shared.files import check_readable

from . import exercises
from .exercises import form
from .ladder import relative
from .subjects import FLOAT32, RUNGS, FailError, Key, Networks, Observation, code_of, text

SECONDS = 120.0  # for the reader's file, the start of its framework included


@dataclass
class Verdict:
    """What the judge says. `rung` is where the code first diverges from the reference; `suspect` the mistake, if known."""

    exercise: str
    file: str
    framework: str = ""
    passed: bool = False
    rung: int | None = None
    place: str = ""
    difference: float | None = None
    tolerance: float | None = None
    suspect: str | None = None
    trap: str | None = None
    message: str = ""
    climbed: list[int] = field(default_factory=list)  # the rungs that hold


def run(name: str, path: Path, limit: float = SECONDS) -> Verdict:
    """The verdict on a file, judged in a process of its own that may run for `limit` seconds.

    What the file prints goes to stderr. Raises `Error` as `judge`.
    """
    check_file(name, path)
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH")])),
        "TF_CPP_MIN_LOG_LEVEL": os.environ.get("TF_CPP_MIN_LOG_LEVEL", "3"),
    }
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "verdict.json"
        # -P: no file beside the reader's may be taken for a package of that name, such as torch.py
        command = [sys.executable, "-P", "-m", "twins.judge", name, str(path), str(answer)]
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=2, env=environment, start_new_session=True)
        try:
            process.wait(limit)
        except subprocess.TimeoutExpired:
            message = f"it did not finish within {limit:g} s: is there an endless loop?"
            return Verdict(name, str(path), rung=0, message=message)
        finally:
            with contextlib.suppress(OSError, AttributeError):  # and what the file has started; Windows has no such groups
                os.killpg(process.pid, signal.SIGKILL)
            process.kill()
            process.wait()
        if not answer.exists():
            message = f"its process ended with status {process.returncode}, without a verdict: does the file call exit()?"
            return Verdict(name, str(path), rung=0, message=message)
        content = json.loads(answer.read_text(encoding="utf-8"))
    if "error" in content:
        raise Error(content["error"])
    return Verdict(**content)


def main(name: str, path: str, answer: str) -> None:
    """Judge a file and write the verdict, or a mistake in the use of the judge, into the file `answer`."""
    try:
        content = asdict(judge(name, Path(path)))
    except Error as error:
        content = {"error": f"{error}"}
    Path(answer).write_text(json.dumps(content), encoding="utf-8")


def judge(name: str, path: Path) -> Verdict:
    """The verdict on a reader's file, which is run in this process.

    Raises `Error` for what cannot be judged: no such exercise or file, a syntax error, no class of the name.
    """
    check_file(name, path)
    exercise = exercises.load(name)
    verdict = Verdict(name, str(path))
    try:
        if isinstance(exercise, form.Network):
            subjects: Any = Networks(exercise, path)
        else:
            subjects = code_of(exercise, path)
        verdict.framework = subjects.framework
        with subjects.precision():
            _climb(verdict, subjects, exercise)
    except FailError as failure:
        verdict.rung, verdict.message = 0, f"{failure}"
        if 0 in verdict.climbed:  # it runs, but not on this rung, as in a backward pass that fails
            verdict.rung = next(rung for rung in subjects.rungs if rung not in verdict.climbed)
        if failure.suspect:
            verdict.suspect, verdict.trap = failure.suspect.name, failure.suspect.trap
    return verdict


def check_file(name: str, path: Path) -> None:
    """Raise `Error` for an exercise that is not there, and for a file that is not there, or of the wrong kind."""
    suffix = exercises.statement(name).suffix
    if path.suffix != suffix:
        what = "a spec, a file ending in .json" if suffix == ".json" else "code, a file ending in .py"
        raise Error(f"{path}: {name} asks for {what}")
    check_readable(path, most=limits.SPEC)


def _climb(verdict: Verdict, subjects: Any, exercise: Any) -> None:
    """Compare rung by rung, and fill the verdict in at the first difference."""
    for rung in subjects.rungs:
        ours, theirs = subjects.ours(rung), subjects.theirs(rung)
        limit = subjects.limit(rung)
        if verdict.rung is None and 0 not in verdict.climbed:
            verdict.climbed.append(0)
        extra = [key for key in theirs if key not in ours] if rung == 1 else []
        for key in (*ours, *extra):
            difference = _difference(ours[key], theirs[key]) if key in ours and key in theirs else np.inf
            if not difference <= limit:
                verdict.rung, verdict.tolerance = rung, limit
                verdict.difference = float(difference) if np.isfinite(difference) else None
                verdict.place = ": ".join(reversed(key))
                _diagnose(verdict, subjects, exercise, rung, key, ours, theirs)
                return
        if ours:
            verdict.climbed.append(rung)
    verdict.passed = True
    verdict.message = subjects.praise()


def _difference(ours: np.ndarray, theirs: np.ndarray) -> float:
    with np.errstate(divide="ignore"):
        value = relative(np.asarray(ours, float), np.asarray(theirs, float))
    return np.inf if np.isnan(value) else value


def _diagnose(
    verdict: Verdict, subjects: Any, exercise: Any, rung: int, key: Key, ours: Observation, theirs: Observation
) -> None:  # fmt: skip
    """Say which known mistake it is, if it is one; otherwise, honestly, where it differs and by how much."""
    near = verdict.difference is not None and verdict.difference < 100 * FLOAT32
    tolerances = [subjects.limit(rung)] if near else [subjects.limit(rung), FLOAT32]
    # A single mistake explains all cases; if there are several, the first case to diverge may show only one of them.
    tries = [(only, limit) for only in (None, key[0]) for limit in tolerances]
    known = (s for only, limit in tries for s in exercise.suspects if subjects.matches(s, rung, key, theirs, limit, only))
    suspect = next(known, None) or subjects.general(rung, key, theirs)
    a, b = ours.get(key), theirs.get(key)
    numbers: dict[str, Any] = {"ratio": np.nan, "n": 0, "changed": 0.0, "peak": np.nan}
    numbers |= {"quantity": key[1], "framework": subjects.framework}
    numbers |= _numbers(a, b) if a is not None and b is not None else {}
    numbers |= subjects.numbers(rung, key)
    if suspect:
        verdict.suspect, verdict.trap = suspect.name, suspect.trap
        verdict.message = suspect.message.format(**numbers)
        return
    message = subjects.unknown(rung, key, a, b) or _honest(rung, key, a, b, verdict.difference)
    verdict.message = message + subjects.context(rung, key)


def _numbers(ours: np.ndarray, theirs: np.ndarray) -> dict[str, Any]:
    if np.shape(ours) != np.shape(theirs):
        return {}
    a, b = np.asarray(ours, float).ravel(), np.asarray(theirs, float).ravel()
    usable = np.isfinite(a) & np.isfinite(b) & (a != 0)
    ratio = float(np.median(b[usable] / a[usable])) if usable.any() else np.nan
    return {"ratio": ratio, "changed": float(np.mean(a != b))}


def _honest(rung: int, key: Key, ours: np.ndarray | None, theirs: np.ndarray | None, difference: float | None) -> str:
    """The message for a mistake that is not known."""
    case, quantity = key
    where = f"{RUNGS[rung]}: {quantity} for {case}"
    if ours is None or theirs is None:
        return f"{where}: yours has {'one' if ours is None else 'none'}, the reference {'none' if ours is None else 'one'}"
    if rung == 1:
        return f"{where}: yours is {text(theirs)}, expected {text(ours)}"
    if np.shape(ours) != np.shape(theirs):
        return f"{where}: yours is of shape {text(np.shape(theirs))}, expected {text(np.shape(ours))}"
    bad = int(np.size(theirs) - np.isfinite(theirs).sum())
    if bad:
        return f"{where}: {bad} of {np.size(theirs)} values are infinite or NaN"
    far = f"your {quantity} differs by {difference:.1e} for {case}"
    if difference is not None and difference < FLOAT32:
        return f"{far}. A difference this small comes from rounding to float32: stay in float64"
    far += ", and it is not one of the mistakes that this exercise knows"
    ratio = _numbers(ours, theirs).get("ratio", np.nan)
    spread = np.asarray(theirs, float) - ratio * np.asarray(ours, float)
    if np.isfinite(ratio) and np.linalg.norm(spread) <= 1e-6 * np.linalg.norm(theirs):
        return f"{far}. Yours is {ratio:.6g} times ours everywhere"
    flat = np.argmax(np.abs(np.asarray(theirs, float) - ours)) if np.ndim(ours) else 0
    index = tuple(int(i) for i in np.unravel_index(flat, np.shape(ours)))
    return f"{far}. It is farthest at {index}: {np.asarray(theirs)[index]:.6g}, expected {np.asarray(ours)[index]:.6g}"


if __name__ == "__main__":
    main(*sys.argv[1:])
