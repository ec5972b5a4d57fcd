"""What measurements come to: rates, times, ratios, and how much of what the machine can do.

Times are in milliseconds, `param_count` in millions, `gmacs` in 10^9 multiply-accumulates for one image in inference, memory
in MiB. The ratio of two candidates in a sitting is the median over its turns, pair by pair; over several sittings it is the
median of theirs, with the quartiles. With one sitting alone, the quartiles are those of its pairs.
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from candidates import CEILING, OURS, Case, Dtype, Mode
from sittings import Measured

from shared import shapes

BYTES = {Dtype.FLOAT32: 4, Dtype.TF32: 4, Dtype.BFLOAT16: 2, Dtype.FLOAT16: 2}  # of a number
SLACK = 1.02  # how far above the ceiling a result may be: clocks are not constant

Row = dict[str, Any]  # of the results, under timm's keys where timm has one
Ceiling = dict[str, float]  # "flops" and "bytes" per second
Ceilings = Mapping[tuple[str, str], Ceiling]  # by backend and dtype


def ceilings(candidates: Iterable[Sequence[Measured]]) -> dict[tuple[str, str], Ceiling]:
    """{(backend, dtype): {"flops", "bytes"}}: the most that the machine has done in a second, in any turn."""
    best: dict[tuple[str, str], Ceiling] = {}
    for worker in itertools.chain(*candidates):
        if worker.case["implementation"] == CEILING:
            ceiling = best.setdefault((worker.case["backend"], worker.case["dtype"]), {"flops": 0, "bytes": 0})
            for turn in worker.turns:
                ceiling |= {key: max(ceiling[key], turn[key]) for key in ceiling}
    return best


def rows(candidates: Sequence[Sequence[Measured]], ceilings: Ceilings) -> list[Row]:
    """What is measured and known of the candidates of one comparison, a row each."""
    measured = [workers for workers in candidates if workers[0].case["implementation"] != CEILING]
    return [row(workers, ceilings) | {"ratios": ratios(workers, measured)} for workers in measured]


def row(workers: Sequence[Measured], ceilings: Ceilings) -> Row:
    """What is measured and known of one candidate, without its ratios to others."""
    case, about = workers[0].case, workers[0].about
    ceiling = ceilings.get((case["backend"], case["dtype"]))
    turns = [turn for worker in workers for turn in worker.turns]
    times = np.array([time for turn in turns for time in turn["times"]])
    low, median, high, p95 = np.percentile(times, (25, 50, 75, 95)).tolist()
    layers = shapes.layers(case["spec"], case["size"])
    return {
        "network": case["spec"]["name"],
        "mode": case["mode"],
        "backend": case["backend"],
        "implementation": case["implementation"],
        f"{case['mode']}_samples_per_sec": case["batch"] / median,
        "step_time": 1000 * median,
        "step_time_p95": 1000 * p95,
        "step_time_iqr": 1000 * (high - low),
        "first_call": 1000 * float(np.median([worker.about["first_call"] for worker in workers])),
        "steps": len(times),
        "processes": len(workers),
        "peak_memory": max(turn["peak"] for turn in turns) / 2**20,
        "batch_size": case["batch"],
        "img_size": list(case["size"]),
        "param_count": shapes.parameters(layers) / 1e6,
        "gmacs": sum(layer.macs for layer in layers) / 1e9,
        **{key: case[key] for key in ("dtype", "format", "compile", "cuda_graphs", "fold")},
        **{key: about[key] for key in ("device", "versions", "threads")},
        "ceiling_gflops": ceiling and ceiling["flops"] / 1e9,
        "ceiling_gbytes_per_sec": ceiling and ceiling["bytes"] / 1e9,
        "ceiling_fraction": ceiling and shortest_step(case, layers, ceiling) / median,
    }


def ratios(workers: Sequence[Measured], measured: Sequence[Sequence[Measured]]) -> dict[str, dict[str, Any]]:
    """{other candidate: `ratio`} of one of ours to the others of its backend, and to itself in other backends."""
    case = workers[0].case
    others = measured if case["implementation"] in OURS else ()
    return {
        name_beside(other[0].case, case): ratio(workers, other)
        for other in others
        if other is not workers and comparable(case, other[0].case)
    }


def comparable(case: Case, other: Case) -> bool:
    """Whether a ratio of the two means something."""
    return case["backend"] == other["backend"] or all(case[key] == other[key] for key in ("implementation", "dtype"))


def name_beside(other: Case, case: Case) -> str:
    """A candidate's name beside another: with its backend and its precision where these differ."""
    differs = [other[key] for key in ("backend", "dtype") if other[key] != case[key]]
    return other["implementation"] + (f" ({', '.join(differs)})" if differs else "")


def ratio(ours: Sequence[Measured], theirs: Sequence[Measured]) -> dict[str, Any]:
    """How many times as fast ours is: in "each" sitting, and the "median" of these with their quartiles, "low" and "high"."""
    sittings = [  # a candidate that has failed has had fewer of them
        [np.median(their["times"]) / np.median(our["times"]) for our, their in zip(one.turns, other.turns, strict=True)]
        for one, other in zip(ours, theirs, strict=False)
    ]
    each = [float(np.median(turns)) for turns in sittings]
    low, median, high = np.percentile(each if len(each) > 1 else sittings[0], (25, 50, 75)).tolist()
    return {"median": median, "low": low, "high": high, "each": each}


def shortest_step(case: Case, layers: Sequence[shapes.Row], ceiling: Ceiling) -> float:
    """The seconds that a step takes at least: for its multiplications at the machine's rate, or for the bytes that must move.

    Training has the forward pass, the gradients of all weights and those of all maps but the image. The weights and the
    images move, in training also the gradients of the weights, and the optimiser reads and writes them: everything else may
    stay in a cache.
    """
    training = case["mode"] == Mode.TRAIN
    macs = [layer.macs for layer in shapes.leaves(layers) if layer.macs]
    operations = 2 * case["batch"] * (3 * sum(macs) - macs[0] if training else sum(macs))
    size = 4 if training else BYTES[case["dtype"]]
    numbers = shapes.parameters(layers) * (3 if training else 1)
    images = case["batch"] * case["spec"]["input"][0] * case["size"][0] * case["size"][1]
    return max(operations / ceiling["flops"], size * (numbers + images) / ceiling["bytes"])


def notes(results: Sequence[Row], processes: int) -> list[str]:
    """What a reader should know of results: which are of fewer processes, and which cannot be right."""
    few = [
        f"{title(row)}: measured in {row['processes']} of {processes} processes"
        for row in results
        if row["processes"] < processes
    ]
    wrong = [
        f"{title(row)}: {row['ceiling_fraction']:.2f} of what the machine can do: "
        "the measurement is wrong, unless the convolutions save multiplications (Winograd)"
        for row in above_ceiling(results)
    ]
    return few + wrong


def above_ceiling(results: Sequence[Row]) -> list[Row]:
    """The results that exceed what the machine can do."""
    return [row for row in results if (row["ceiling_fraction"] or 0) > SLACK]


def title(row: Row) -> str:
    """A row for people: its network, mode and candidate."""
    return f"{row['network']}, {row['mode']}, {candidate(row)}"


def candidate(row: Row) -> str:
    """A row's candidate for people: its backend and implementation, and its precision if that is not float32."""
    dtype = "" if row["dtype"] == Dtype.FLOAT32 else f", {row['dtype']}"
    return f"{row['backend']} {row['implementation']}{dtype}"
