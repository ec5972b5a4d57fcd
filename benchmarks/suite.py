"""The whole table of one kind of device, taken in parts: every comparison is kept when it is done, and the next call continues.

All forms of all networks would take a day. So one thing varies at a time: the precision, in the form that is usually fastest;
then, in bfloat16, the memory format, compilation, the framework and the batch.
"""

import dataclasses
import itertools
import json
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import candidates
import report
import summary
import typer
from candidates import CEILING, Device, Dtype, Format, Mode, Peer, Settings
from origin import origin
from sittings import Measured, Say, compare
from summary import Ceilings, Row

from shared import networks
from shared.checks import Error
from shared.files import write_text
from twins.backends import Backend
from twins.cli import output

KEPT = "measured.jsonl"  # in the folder of a suite: a line for each comparison that is done


class Suite(StrEnum):
    """A table, by the device that it is of."""

    CPU = "cpu"
    GPU = "gpu"


NETWORKS = {
    Suite.CPU: ("resnet18", "resnet50", "resnet50_keras", "drn_c_26"),
    Suite.GPU: ("resnet18", "resnet50", "drn_c_26", "drn_d_54"),
}
PEERS = {  # whose packages have these networks
    "resnet18": (Peer.TORCHVISION, Peer.TIMM, Peer.KERAS_HUB),
    "resnet50": (Peer.TORCHVISION, Peer.TIMM, Peer.KERAS_HUB),
    "resnet50_keras": (Peer.KERAS_APPLICATIONS,),
}
KERAS = (Backend.TF, Backend.JAX)


class Comparison(NamedTuple):
    """What is measured together."""

    network: str
    mode: Mode
    settings: Settings

    def key(self, processes: int) -> str:
        """What it is kept under, measured in so many processes; 1 stands in no key, as in the files of earlier versions."""
        values = {"network": self.network, "mode": self.mode, **dataclasses.asdict(self.settings)}
        return json.dumps(values | ({"processes": processes} if processes > 1 else {}), sort_keys=True)


class Kept(NamedTuple):
    """A comparison that is done."""

    key: str
    call: str  # the date of the call that measured it: its ceiling is of the same call
    measured: list[list[Measured]]  # by candidate
    notes: list[str]
    commit: str | None = None  # of what was measured, as `origin` has it; None in the files of earlier versions


def main(
    suite: Annotated[Suite, typer.Option(metavar="SUITE", help="Device of the table: cpu or gpu.")],
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Output folder; measurements already in it are not repeated.")],
    network: Annotated[list[str] | None, typer.Option(help="Measure only this network; may be repeated.")] = None,
    size: Annotated[
        int | None, typer.Option(min=1, help="Height and width of the images, in pixels. Default: the spec's.")
    ] = None,
    minutes: Annotated[float, typer.Option(min=0, help="Time limit: start nothing that would probably end later.")] = 10,
    processes: Annotated[int, typer.Option(min=1, help="Processes that measure each candidate, one after the other.")] = 1,
) -> None:
    """Take the whole table of a device, part by part: the same command continues where it stopped.

    The folder gets results.json, results.csv and results.png; the screen shows each network's candidates in their fastest form.
    """
    if suite == Suite.GPU and not shutil.which("nvidia-smi"):
        raise Error("--suite gpu: nvidia-smi is not installed, so there is no GPU; --suite cpu measures the processor")
    planned = comparisons(suite, network or NETWORKS[suite], size)
    for comparison in planned:
        candidates.cases(*comparison)  # tells of mistakes before anything is measured
    out.mkdir(parents=True, exist_ok=True)
    source = origin()
    with output.status("starting") as say:
        done, failures = measure(planned, out, minutes, source, processes, say)
    results = rows(done)
    notes = [*failures, *summary.notes(results, processes)]
    write_text(out / "results.json", report.as_json(source, notes, results))
    write_text(out / "results.csv", report.as_csv(results))
    best = fastest(results)
    if best:
        report.draw(best, out / "results.png")
    report.show(best, notes, {})
    if len(done) < len(planned):
        output.remark(f"{len(done)} of {len(planned)} comparisons are done; the same command continues")
    sys.exit(0 if results and not summary.above_ceiling(results) else 1)


def comparisons(suite: Suite, names: Sequence[str], size: int | None) -> list[Comparison]:
    """The comparisons of a suite, what matters most first."""
    vary, pairs = dataclasses.replace, list(itertools.product(names, (Mode.INFER, Mode.TRAIN)))
    return [
        Comparison(network, mode, vary(settings, peers=peers(network, settings), size=size))
        for settings in (on_cpu() if suite == Suite.CPU else on_gpu())
        for network, mode in pairs
    ]


def peers(network: str, settings: Settings) -> list[Peer]:
    """Who has a network in the backends of such settings."""
    return [peer for peer in PEERS.get(network, ()) if set(settings.backends) & set(candidates.PEERS[peer])]


def on_cpu() -> Iterator[Settings]:
    """Every framework, in both precisions, and compiled. JAX compiles every step."""
    for dtype, backend in itertools.product((Dtype.FLOAT32, Dtype.BFLOAT16), (Backend.TORCH, *KERAS)):
        yield Settings([backend], [dtype], recommended=True)
    for backend in (Backend.TORCH, Backend.TF):
        yield Settings([backend], recommended=True, compiled=True)


def on_gpu() -> Iterator[Settings]:
    """See the docstring of this module."""
    vary = dataclasses.replace
    base = Settings([Backend.TORCH], [Dtype.BFLOAT16], (), True, batch=64, layout=Format.NHWC, device=Device.GPU)
    dtypes = (Dtype.BFLOAT16, Dtype.TF32, Dtype.FLOAT32)
    for dtype in dtypes:
        yield vary(base, dtypes=[dtype])
    yield vary(base, cuda_graphs=True)
    yield vary(base, compiled=True)
    yield vary(base, layout=Format.NCHW)
    for backend, dtype in itertools.product(KERAS, dtypes):
        yield vary(base, backends=[backend], dtypes=[dtype])
    for batch, graphs in itertools.product((1, 256, 16), (True, False)):
        yield vary(base, batch=batch, cuda_graphs=graphs)


def measure(
    planned: Sequence[Comparison], folder: Path, minutes: float, source: Mapping[str, str | None], processes: int, say: Say
) -> tuple[list[Kept], list[str]]:
    """(those of the planned comparisons that are done, in this call or before; notes on what failed).

    `source` is the `origin` of this call. After the first, none is started that would probably not end within `minutes`.
    Raises `Error` if the folder is of another device.
    """
    done, notes, longest, started = read(folder / KEPT), list[str](), 0.0, time.monotonic()
    for number, comparison in enumerate(planned):
        spent = time.monotonic() - started
        if any(one.key == comparison.key(processes) for one in done):
            continue
        if longest and spent + longest > 60 * minutes:
            break
        place = f"{number + 1} of {len(planned)}, {minutes - spent / 60:.0f} min left"
        one = take(comparison, done, source, processes, lambda text, place=place: say(f"{place}: {text}"))  # type: ignore[misc]
        longest = max(longest, time.monotonic() - started - spent)
        if any(candidate[0].case["implementation"] != CEILING for candidate in one.measured):
            check_device(one, done, folder)
            done.append(one)
            write_text(folder / KEPT, "".join(map(as_line, done)))
        else:  # a framework that is not installed, say: the next call tries again
            notes += one.notes
    order = [comparison.key(processes) for comparison in planned]
    kept = sorted((one for one in done if one.key in order), key=lambda one: order.index(one.key))
    return kept, list(dict.fromkeys([*notes, *(note for one in kept for note in one.notes)]))


def take(comparison: Comparison, done: Sequence[Kept], source: Mapping[str, str | None], processes: int, say: Say) -> Kept:
    """Measure a comparison, and the ceiling of its backend and precision unless this call has it already."""
    call = str(source["date"])
    known = ceilings(done, call)
    cases = candidates.cases(*comparison)
    cases = [case for case in cases if case["implementation"] != CEILING or (case["backend"], case["dtype"]) not in known]
    workers, notes = compare(cases, processes, 2, say)
    return Kept(comparison.key(processes), call, workers, notes, source["commit"])


def check_device(one: Kept, done: Sequence[Kept], folder: Path) -> None:
    """Raise `Error` if a comparison is of another device than those that are done."""
    here, there = devices([one]), devices(done)
    if there and here != there:
        raise Error(f"{folder}: measured on {', '.join(there)}, and this is {', '.join(here)}: name another folder with --out")


def devices(done: Sequence[Kept]) -> set[str]:
    """What the comparisons were measured on."""
    return {each.about["device"] for one in done for candidate in one.measured for each in candidate}


def rows(done: Sequence[Kept]) -> list[Row]:
    """The results, each with its share of the ceiling of the same call, and with the commit that was measured."""
    return [row | {"commit": one.commit} for one in done for row in summary.rows(one.measured, ceilings(done, one.call))]


def ceilings(done: Sequence[Kept], call: str) -> Ceilings:
    """What the machine has done at most in a call."""
    return summary.ceilings(candidate for one in done if one.call == call for candidate in one.measured)


def fastest(results: Sequence[Row]) -> list[Row]:
    """Of each network in each mode, and of each candidate in each precision, the fastest form, in the order of the networks."""
    best: dict[tuple[str, ...], Row] = {}
    for row in results:
        key = tuple(row[name] for name in ("network", "mode", "backend", "implementation", "dtype"))
        rate = f"{row['mode']}_samples_per_sec"
        if key not in best or row[rate] > best[key][rate]:
            best[key] = row
    order = list(dict.fromkeys(row["network"] for row in results))
    return sorted(best.values(), key=lambda row: (order.index(row["network"]), row["mode"]))


def as_line(one: Kept) -> str:
    """A comparison as a line of the file, its spec by name."""
    name = json.loads(one.key)["network"]
    measured = [
        [{"case": each.case | {"spec": name}, "about": each.about, "turns": each.turns} for each in candidate]
        for candidate in one.measured
    ]
    line = {"key": one.key, "call": one.call, "commit": one.commit, "notes": one.notes, "measured": measured}
    return json.dumps(line) + "\n"


def read(path: Path) -> list[Kept]:
    """The comparisons that a file has. Raises `Error` if it is none of ours."""
    try:
        lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        return [
            Kept(line["key"], line["call"], list(map(candidate, line["measured"])), line["notes"], line.get("commit"))
            for line in lines
        ]
    except (ValueError, KeyError, TypeError) as error:
        raise Error(f"{path}: not what a suite has measured ({error}); name another folder with --out") from None


def candidate(sittings: list[dict[str, Any]]) -> list[Measured]:
    """What was measured of one candidate."""
    cases = [each["case"] | {"spec": networks.load(each["case"]["spec"])} for each in sittings]
    return [Measured(case, each["about"], each["turns"]) for case, each in zip(cases, sittings, strict=True)]
