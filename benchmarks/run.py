"""Measure how many images a second the networks take, in PyTorch and in Keras, side by side with other projects' networks.

Each candidate runs in a process of its own (`worker.py`); they take turns, A B B A, so that what else the machine does meets
all of them. Two processes of one network may differ for as long as they live, so all are started afresh for each of several
sittings. A sitting's ratio is the median over its turns, pair by pair; the ratio of a comparison is the median over its
sittings, with their quartiles; where there is one sitting alone, they are the quartiles of its pairs.
Times are in milliseconds, `param_count` in millions, `gmacs` in 10^9 multiply-accumulates for one image in inference, memory
in MiB. A training step is forward pass, cross-entropy, backward pass and an SGD-momentum update.
"""

import csv
import datetime
import io
import itertools
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

try:
    import shared
except ModuleNotFoundError:  # a checkout that is not installed
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    import shared
from shared import shapes
from shared.checks import nearest
from shared.files import atomic_path, check_writable
from twins.plots import check_figure

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

MODES = ("infer", "train")
BACKENDS = ("torch", "tf", "jax", "keras-torch")
DTYPES = {"float32": 4, "tf32": 4, "bfloat16": 2, "float16": 2}  # bytes of a number
PEERS = {
    "torchvision": ("torch",),
    "timm": ("torch",),
    "keras.applications": BACKENDS[1:],
    "keras_hub": BACKENDS[1:],
    "twins": BACKENDS,
}
AGAIN = "twins again"  # a second process of ours, which shows how far from 1 chance alone takes a ratio
OURS = ("twins", "recommended")  # as asked for, and in the form that is quickest here
SLACK = 1.02  # how far above the ceiling a result may be: clocks are not constant
# Of the table, beside the ratios: keys of the results, under timm's names where timm has one
COLUMNS = {
    "network": "network",
    "candidate": "candidate",
    "infer_samples_per_sec": "infer\nimages/s",
    "train_samples_per_sec": "train\nimages/s",
    "step_time": "step\nms",
    "step_time_p95": "p95\nms",
    "step_time_iqr": "spread\nms",
    "first_call": "first\nms",
    "peak_memory": "memory\nMiB",
    "batch_size": "batch",
    "ceiling_fraction": "of the\nceiling",
}


class Failed(Exception):  # noqa: N818
    """A candidate cannot be measured; the message says why."""


class Worker:
    """A process that measures one candidate when asked."""

    def __init__(self, case):
        self.case, self.about, self.times = case, {}, []
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115
        environment = os.environ | {
            "TF_CPP_MIN_LOG_LEVEL": "3",
            "TF_FORCE_GPU_ALLOW_GROWTH": "true",  # the others want memory, too
            "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
            **({"CUDA_VISIBLE_DEVICES": "", "JAX_PLATFORMS": "cpu"} if case["device"] == "cpu" else {}),
        }
        command = [sys.executable, str(Path(__file__).with_name("worker.py"))]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=self.errors, text=True, env=environment)

    def ask(self, line):
        """The answer to a line. Raises `Failed` or `MemoryError`."""
        try:
            self.process.stdin.write(f"{line}\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # its exit says why
        answer = self.process.stdout.readline()
        if not answer:
            if self.process.wait() == -9:  # the system's way of saying so
                raise MemoryError
            self.errors.seek(0)
            lines = self.errors.read().decode(errors="replace").strip().splitlines()
            raise Failed(f"{self.case['implementation']} failed: {lines[-1] if lines else self.process.returncode}")
        found = json.loads(answer)
        if "out_of_memory" in found:
            raise MemoryError
        if "impossible" in found:
            raise Failed(found["impossible"])
        return found

    def close(self):
        self.process.kill()
        self.process.wait()
        for file in (self.process.stdin, self.process.stdout, self.errors):
            file.close()


def compare(cases, processes, rounds, say):
    """The workers of each candidate, one a sitting, and notes on who failed; the batch halves until all have memory.

    Who fails has no further sittings.
    """
    cases = [dict(case) for case in cases]
    order, sittings, notes = list(cases), [], []

    def tell(what):
        say(f"{what}, process {len(sittings) + 1} of {processes}")

    while order and len(sittings) < processes:
        try:
            sittings.append(sit(order, rounds, notes, tell))
            order.reverse()  # who has sat first sits last
        except MemoryError as error:
            sittings, batch = [], cases[0]["batch"]
            if batch == 1:
                notes.append(f"{title(cases[0])}: out of memory with a batch of 1 ({error})")
                break
            notes.append(f"{title(cases[0])}: out of memory with a batch of {batch} ({error}), measured with {batch // 2}")
            for case in cases:
                case["batch"] = batch // 2
    found = [[worker for workers in sittings for worker in workers if worker.case is case] for case in cases]
    return [workers for workers in found if workers], notes


def sit(cases, rounds, notes, say):
    """Workers of the cases that have taken turns, one each; who fails goes into the notes and out of the cases."""
    workers = []
    try:
        for case in list(cases):
            say(f"{title(case)}: starting {case['implementation']}")
            workers.append(Worker(case))
            try:
                workers[-1].about = workers[-1].ask(json.dumps(case))
                check_same(case, workers[-1].about.get("parameters"))
            except Failed as error:
                workers.pop().close()
                cases.remove(case)
                notes.append(str(error))
        for number in range(rounds):
            for worker in workers[:: -1 if number % 2 else 1]:  # none is always behind the same one
                say(f"{title(worker.case)}: {worker.case['implementation']}, turn {number + 1} of {rounds}")
                try:
                    worker.times.append(worker.ask("turn"))
                except Failed as error:
                    workers.remove(worker)
                    worker.close()
                    cases.remove(worker.case)
                    notes.append(f"{title(worker.case)}: {error}")
        return workers
    except MemoryError:
        raise MemoryError(f"{len(workers)} processes at once") from None
    finally:
        for worker in workers:
            worker.close()


def check_same(case, parameters):
    """Raise `Failed` where a network of another project, by its number of parameters, is not the spec's."""
    expected = shapes.parameters(shapes.layers(case["spec"]))
    if case["implementation"] in PEERS and parameters != expected:
        name = f"{case['implementation']}'s {case['spec']['name']}"
        raise Failed(f"{name} has {parameters:,} parameters, not {expected:,}: another network")


def title(case):
    return f"{case['spec']['name']}, {case['mode']}, {case['backend']}"


def ceilings(candidates):
    """{(backend, dtype): {"flops", "bytes"}}: the most that the machine has done in a second, in any turn."""
    found = {}
    for worker in itertools.chain(*candidates):
        if worker.case["implementation"] == "ceiling":
            best = found.setdefault((worker.case["backend"], worker.case["dtype"]), {"flops": 0, "bytes": 0})
            for turn in worker.times:
                best |= {key: max(best[key], turn[key]) for key in best}
    return found


def rows(candidates, best):
    """What is measured and known of the candidates of one comparison; `best` is the machine's, as `ceilings` has it."""
    found = []
    measured = [workers for workers in candidates if workers[0].case["implementation"] != "ceiling"]
    for workers in measured:
        case, about = workers[0].case, workers[0].about
        ceiling = best.get((case["backend"], case["dtype"]))
        turns = [turn for worker in workers for turn in worker.times]
        times = np.array([time for turn in turns for time in turn["times"]])
        low, median, high, p95 = np.percentile(times, (25, 50, 75, 95))
        layers = shapes.layers(case["spec"], case["size"])
        row = {
            "network": case["spec"]["name"],
            "mode": case["mode"],
            "backend": case["backend"],
            "implementation": case["implementation"],
            f"{case['mode']}_samples_per_sec": case["batch"] / median,
            "step_time": 1000 * median,
            "step_time_p95": 1000 * p95,
            "step_time_iqr": 1000 * (high - low),
            "first_call": 1000 * np.median([worker.about["first_call"] for worker in workers]),
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
            "ceiling_fraction": ceiling and least(case, layers, ceiling) / median,
            "ratios": {},
        }
        for others in measured if case["implementation"] in OURS else ():
            other = others[0].case
            same = all(case[key] == other[key] for key in ("implementation", "dtype"))
            if others is not workers and (case["backend"] == other["backend"] or same):
                row["ratios"][called(other, case)] = ratio(workers, others)
        found.append({key: float(value) if isinstance(value, np.floating) else value for key, value in row.items()})
    return found


def called(other, case):
    """A candidate's name beside another: with its backend and its type of numbers where these differ."""
    differs = [other[key] for key in ("backend", "dtype") if other[key] != case[key]]
    return other["implementation"] + (f" ({', '.join(differs)})" if differs else "")


def ratio(ours, theirs):
    """How many times as quick ours is: of each sitting, the median over its turns; of these, the median and the quartiles."""
    sittings = [  # who has failed has had fewer of them
        [np.median(their["times"]) / np.median(our["times"]) for our, their in zip(one.times, other.times, strict=True)]
        for one, other in zip(ours, theirs, strict=False)
    ]
    each = [float(np.median(turns)) for turns in sittings]
    low, median, high = np.percentile(each if len(each) > 1 else sittings[0], (25, 50, 75)).tolist()
    return {"median": median, "low": low, "high": high, "each": each}


def least(case, layers, ceiling):
    """The seconds that a step takes at least: its multiplications at the machine's rate, or the bytes that must be moved.

    Training has the forward pass, the gradients of all weights and those of all maps but the image. The weights and the
    images are moved, in training also the gradients of the weights, and the optimiser reads and writes them: everything
    else may stay in a cache.
    """
    macs = [layer.macs for layer in shapes.leaves(layers) if layer.macs]
    operations = 2 * case["batch"] * (sum(macs) if case["mode"] == "infer" else 3 * sum(macs) - macs[0])
    size = 4 if case["mode"] == "train" else DTYPES[case["dtype"]]
    numbers = shapes.parameters(layers) * (1 if case["mode"] == "infer" else 3)
    images = case["batch"] * case["spec"]["input"][0] * case["size"][0] * case["size"][1]
    return max(operations / ceiling["flops"], size * (numbers + images) / ceiling["bytes"])


def cases_of(network, mode, size, options, backends, dtypes, against, recommended):
    """The candidates of one comparison. Raises `shared.Error` where the network does not take the images or the mode."""
    spec = shared.load(network)
    size = size or tuple(spec["input"][1:])
    try:
        last = shapes.layers(spec, size)[-1]
    except shared.Error as error:
        raise shared.Error(f"{network}, images of {size[0]}x{size[1]}: {error}") from None
    if mode == "train" and len(last.shape) > 1:
        raise shared.Error(f"{network}: it ends in a map, not in a vector of logits to train on; use --mode infer")
    found = []
    for backend, dtype in itertools.product(backends, dtypes):
        case = {"spec": spec, "mode": mode, "size": size, "backend": backend, "dtype": dtype, "fold": False, **options}
        case["format"] = options["format"] or ("nchw" if backend == "torch" else "nhwc")
        found.append(case | {"implementation": "twins"})
        quickest = {"format": "nhwc", "fold": mode == "infer"}
        if recommended and not quickest.items() <= case.items():
            found.append(case | quickest | {"implementation": "recommended"})
        found += [case | {"implementation": AGAIN if peer == "twins" else peer} for peer in against if backend in PEERS[peer]]
        found.append(case | {"implementation": "ceiling"})
    return found


@app.command()
def run(
    backend: Annotated[list[str], typer.Option(help="torch, tf, jax or keras-torch; may be repeated.")],
    network: Annotated[list[str], typer.Option(help="A name, or the path of a .json spec; may be repeated.")] = ("resnet18",),
    mode: Annotated[str, typer.Option(help="infer, train or both.")] = "both",
    batch: Annotated[int, typer.Option(help="Images in a batch.")] = 16,
    size: Annotated[int | None, typer.Option(help="Height and width of the images, in pixels. Default: the spec's.")] = None,
    dtype: Annotated[
        list[str], typer.Option(help="float32, tf32 (on a GPU), bfloat16 or float16, mixed in training; may be repeated.")
    ] = ("float32",),
    layout: Annotated[str | None, typer.Option("--format", help="nchw or nhwc. Default: the framework's.")] = None,
    compiled: Annotated[bool, typer.Option("--compile", help="Compile: torch.compile, or XLA.")] = False,
    cuda_graphs: Annotated[bool, typer.Option("--cuda-graphs", help="Compile into CUDA graphs, in PyTorch on a GPU.")] = False,
    recommended: Annotated[
        bool, typer.Option("--recommended", help="Also in the form that is quickest: channels last; folded in inference.")
    ] = False,
    device: Annotated[str | None, typer.Option(help="cpu or gpu. Default: gpu where there is nvidia-smi.")] = None,
    against: Annotated[str, typer.Option(help=f"Whose networks, too: {','.join(PEERS)}, which shows the noise.")] = "",
    processes: Annotated[int, typer.Option(help="Processes that each candidate is measured in, one after the other.")] = 5,
    rounds: Annotated[int, typer.Option(help="Turns that each process takes.")] = 2,
    json_file: Annotated[str | None, typer.Option("--json", metavar="FILE", help="Write JSON; - is stdout, alone.")] = None,
    csv_file: Annotated[str | None, typer.Option("--csv", metavar="FILE", help="Write CSV.")] = None,
    plot_file: Annotated[str | None, typer.Option("--plot", metavar="FILE", help="Draw the results.")] = None,
):  # fmt: skip
    """Measure images a second of networks, beside other projects' and beside what the machine can do."""
    device = device or ("gpu" if shutil.which("nvidia-smi") else "cpu")
    peers = [peer for peer in against.split(",") if peer]
    choices = [("mode", [mode], (*MODES, "both")), ("dtype", dtype, DTYPES), ("device", [device], ("cpu", "gpu"))]
    choices += [("backend", backend, BACKENDS), ("against", peers, PEERS), ("format", [layout or "nchw"], ("nchw", "nhwc"))]
    for option, values, known in choices:
        for value in values:
            if value not in known:
                raise shared.Error(f"--{option} is {value!r}{nearest(value, known)}; expected {', '.join(known)}")
    for option, value in (("batch", batch), ("size", size), ("processes", processes), ("rounds", rounds)):
        if value is not None and value < 1:
            raise shared.Error(f"--{option} is {value}, expected a whole number of at least 1")
    if "tf32" in dtype and device == "cpu":
        raise shared.Error("--dtype tf32 is for GPUs; expected float32, bfloat16 or float16 on a CPU")
    if layout == "nchw" and set(backend) != {"torch"}:
        raise shared.Error("--format nchw is for --backend torch: Keras's networks here have the channels last")
    if cuda_graphs and (device == "cpu" or set(backend) != {"torch"}):
        raise shared.Error("--cuda-graphs is for --backend torch on a GPU")
    for peer in peers:
        if not set(backend) & set(PEERS[peer]):
            raise shared.Error(f"--against {peer} is for --backend {' or '.join(PEERS[peer])}")
    modes = MODES if mode == "both" else (mode,)
    options = {
        "batch": batch,
        "format": layout,
        "compile": compiled or cuda_graphs,
        "cuda_graphs": cuda_graphs,
        "device": device,
    }
    comparisons = [
        cases_of(name, one, size and (size, size), options, dict.fromkeys(backend), dict.fromkeys(dtype), peers, recommended)
        for name in network
        for one in modes
    ]
    for path in (json_file, csv_file):
        if path not in (None, "-"):
            check_writable(path)
    if plot_file:
        check_figure(plot_file)

    about = {**origin(), "python": platform.python_version(), "platform": platform.platform()}
    measured, notes = [], []
    with Console(stderr=True).status("") as status:
        for cases in comparisons:
            candidates, said = compare(cases, processes, rounds, status.update)
            measured.append(candidates)
            notes += said
    best = ceilings(itertools.chain(*measured))
    results = [row for candidates in measured for row in rows(candidates, best)]
    notes = list(dict.fromkeys(notes))
    for row in results:
        if row["processes"] < processes:
            which = f"{row['network']}, {row['mode']}, {candidate(row)}"
            notes.append(f"{which}: measured in {row['processes']} of {processes} processes")
    above = [row for row in results if (row["ceiling_fraction"] or 0) > SLACK]
    for row in above:
        notes.append(
            f"{row['network']}, {row['mode']}, {candidate(row)}: {row['ceiling_fraction']:.2f} of what the machine can do: "
            "the measurement is wrong, unless the convolutions save multiplications (Winograd)"
        )
    text = json.dumps({**about, "notes": notes, "results": results}, indent=2) + "\n"
    if json_file == "-":
        sys.stdout.write(text)
    else:
        show(results, notes, best)
    if json_file not in (None, "-"):
        write(json_file, text)
    if csv_file:
        write(csv_file, in_csv(results))
    if plot_file and results:
        plot(results, plot_file)
    sys.exit(0 if results and not above else 1)


def origin():
    """Where results are from: the date, the command, and the commit of this repository, with a "+" where files differ."""
    git = ["git", "describe", "--always", "--exclude=*", "--dirty=+"]  # no tag, which leaves the commit
    try:
        commit = subprocess.run(git, cwd=Path(__file__).parent, capture_output=True, text=True).stdout.strip() or None
    except OSError:  # there is no git
        commit = None
    date = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return {"date": date, "command": shlex.join(["python", *sys.argv]), "commit": commit}


def show(results, notes, best):
    # A pipe has no width of its own: wide enough there for a row to stay a row.
    rivals = list(dict.fromkeys(name for row in results for name in row["ratios"]))
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 120 + 24 * len(rivals))
    table = Table(box=None, header_style="bold", padding=(0, 1, 0, 0))
    keys = [key for key in COLUMNS if key == "candidate" or any(key in row for row in results)]
    for key in keys:
        table.add_column(COLUMNS[key], justify="left" if key in ("network", "candidate") else "right", no_wrap=key != "network")
    for name in rivals:
        table.add_column(f"times\n{name}", justify="right", no_wrap=True)
    before = None
    for row in results:
        if before and (row["network"], row["mode"]) != (before["network"], before["mode"]):
            table.add_section()
        before = row
        cells = [
            f"{row['backend']} {row['implementation']}" if key == "candidate" else in_words(row.get(key, "")) for key in keys
        ]
        table.add_row(*cells, *(in_words(row["ratios"].get(name, "")) for name in rivals))
    if results:
        console.print(table)
        first = results[0]
        known = {name: version for row in results for name, version in row["versions"].items()}
        versions = ", ".join(map(" ".join, known.items()))
        console.print(f"{first['device']}, {versions}, {first['threads']} threads", soft_wrap=True)
        for (backend, dtype), most in best.items():
            rate, speed = most["flops"] / 1e9, most["bytes"] / 1e9
            console.print(f"Ceiling of {backend} in {dtype}: {rate:,.0f} GFLOP/s, {speed:,.0f} GB/s", soft_wrap=True)
    for note in notes:
        console.print(note, soft_wrap=True)


def candidate(row):
    dtype = "" if row["dtype"] == "float32" else f", {row['dtype']}"
    return f"{row['backend']} {row['implementation']}{dtype}"


def in_words(value):
    if isinstance(value, dict):
        return f"{value['median']:.2f} ({value['low']:.2f}–{value['high']:.2f})"
    if isinstance(value, float):
        return f"{value:.3g}" if value < 100 else f"{value:.0f}"
    return "" if value is None else str(value)


def in_csv(results):
    """The results as CSV: versions in words, and of each ratio its median and quartiles."""
    ends, flat = {"": "median", "_low": "low", "_high": "high"}, []
    for row in results:
        ratios = {f"times_{name}{end}": r[key] for name, r in row["ratios"].items() for end, key in ends.items()}
        sizes = {"img_size": "x".join(map(str, row["img_size"])), "versions": " ".join(map(" ".join, row["versions"].items()))}
        flat.append({key: value for key, value in row.items() if key != "ratios"} | sizes | ratios)
    file = io.StringIO()
    writer = csv.DictWriter(file, list(dict.fromkeys(key for row in flat for key in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    return file.getvalue()


def plot(results, path):
    """Draw images a second as bars, network by network, with what the machine could do at most as an outline behind."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    modes = [mode for mode in MODES if any(row["mode"] == mode for row in results)]
    names = list(dict.fromkeys(candidate(row) for row in results))
    colours = dict(zip(names, pyplot.get_cmap("tab10").colors * len(names), strict=False))
    tallest = max(sum(row["mode"] == mode for row in results) for mode in modes)
    networks = list(dict.fromkeys(row["network"] for row in results))
    size = 6.2 * len(modes), 1.3 + 0.34 * tallest + 0.3 * len(networks)
    figure, axes = pyplot.subplots(1, len(modes), figsize=size, squeeze=False, layout="constrained")
    for axis, mode in zip(axes[0], modes, strict=True):
        y, ticks = 0.0, []
        for network in networks:
            group = [row for row in results if (row["network"], row["mode"]) == (network, mode)]
            ticks += [(y + (len(group) - 1) / 2, network)] if group else []
            for row in group:
                name, speed = candidate(row), row[f"{mode}_samples_per_sec"]
                share = row["ceiling_fraction"] or 1
                axis.barh(y, speed / share, color="none", edgecolor="0.75", height=0.85)
                axis.barh(y, speed, color=colours[name], height=0.85, label=name)
                axis.text(speed / min(share, 1), y, f" {speed:,.3g}  ({100 * share:.0f} %)", va="center", fontsize=8)
                y += 1
            y += 0.8
        axis.set_yticks([place for place, _ in ticks], [name for _, name in ticks])
        axis.invert_yaxis()
        axis.set_xlabel("images a second (share of the machine's ceiling)")
        axis.margins(x=0.16)
        axis.set_title({"infer": "inference", "train": "training"}[mode])
        axis.spines[["top", "right"]].set_visible(False)
    known = {label: handle for axis in axes[0] for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    outline = pyplot.Rectangle((0, 0), 1, 1, facecolor="none", edgecolor="0.75")
    handles, labels = [*known.values(), outline], [*known, "the machine's ceiling"]
    figure.legend(handles, labels, loc="outside lower center", ncols=min(4, len(labels)), frameon=False)
    first = results[0]
    batches = "/".join(str(size) for size in dict.fromkeys(row["batch_size"] for row in results))
    figure.suptitle(f"{first['device']}, {first['threads']} threads, batch {batches}", fontsize=10)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=120)
    pyplot.close(figure)


def write(path, text):
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    try:
        app()
    except shared.Error as error:
        Console(stderr=True, highlight=False, markup=False, soft_wrap=True).print(f"run.py: {error}")
        sys.exit(2)
