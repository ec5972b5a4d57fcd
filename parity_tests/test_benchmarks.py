"""The benchmark script, run as a user runs it."""

import csv
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import shared

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))
import parity  # noqa: E402
import run  # noqa: E402
import startup  # noqa: E402

from shared import shapes  # noqa: E402


def benchmark(*options):
    options = [*options, *([] if "--device" in options else ["--device", "cpu"])]
    command = [sys.executable, "benchmarks/run.py", *map(str, options)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)


@pytest.mark.long
def test_side_by_side_with_a_peer(tmp_path):
    files = [f"--{kind}={tmp_path / f'found.{end}'}" for kind, end in (("json", "json"), ("csv", "csv"), ("plot", "png"))]
    options = ["--network", "resnet18", "--size", 32, "--batch", 2, "--processes", 2, "--rounds", 1, "--mode", "train"]
    done = benchmark("--backend", "torch", *options, "--against", "torchvision,timm_", *files)
    assert (done.returncode, done.stdout) == (2, "")  # before anything has begun

    done = benchmark("--backend", "torch", *options, "--against", "torchvision", "--recommended", *files)
    assert (done.returncode, done.stderr) == (0, "")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["found.csv", "found.json", "found.png"]
    found = json.loads((tmp_path / "found.json").read_text())
    assert {"date", "commit", "python", "platform", "notes"} <= set(found)
    assert found["command"].startswith("python benchmarks/run.py --backend torch --network resnet18")

    rows = found["results"]
    candidates = ["twins", "recommended", "torchvision"]
    assert [row["implementation"] for row in rows] == candidates
    layers = shapes.layers(shared.load("resnet18"), (32, 32))
    for row in rows:
        assert (row["network"], row["mode"]) == ("resnet18", "train")
        assert (row["batch_size"], row["img_size"], row["dtype"]) == (2, [32, 32], "float32")
        assert row["gmacs"] == sum(layer.macs for layer in layers) / 1e9
        assert row["param_count"] == shapes.parameters(layers) / 1e6
        assert row[f"{row['mode']}_samples_per_sec"] == pytest.approx(2000 / row["step_time"])
        assert 0 < row["step_time"] <= row["step_time_p95"] and row["steps"] >= row["processes"] == 2
        assert 0 < row["ceiling_fraction"] <= run.SLACK and row["first_call"] > 0 and row["peak_memory"] > 100
        assert (row["format"], row["fold"]) == ("nhwc" if row["implementation"] == "recommended" else "nchw", False)
        assert set(row["ratios"]) == (set(candidates) - {row["implementation"]} if row["implementation"] in run.OURS else set())
        for ratio in row["ratios"].values():
            assert 0 < ratio["low"] <= ratio["median"] <= ratio["high"] and len(ratio["each"]) == 2
    table = list(csv.DictReader((tmp_path / "found.csv").open()))
    assert [row["implementation"] for row in table] == [row["implementation"] for row in rows]
    assert float(table[0]["times_torchvision"]) == rows[0]["ratios"]["torchvision"]["median"]


@pytest.mark.parametrize(
    ("backend", "frameworks", "options"),
    [
        ("torch", {"torch"}, ["--mode", "infer"]),
        *(
            pytest.param(*case, marks=pytest.mark.long)
            for case in (
                ("tf", {"keras", "tensorflow"}, ["--mode", "infer", "--dtype", "bfloat16", "--recommended"]),
                ("jax", {"keras", "jax"}, ["--mode", "train"]),
                ("keras-torch", {"keras", "torch"}, ["--mode", "train"]),
            )
        ),
    ],
)
def test_every_backend(backend, frameworks, options):
    options = ["--network", "mnist_residual", "--batch", 4, "--processes", 1, *options, "--json", "-"]
    done = benchmark("--backend", backend, *options)
    assert (done.returncode, done.stderr) == (0, "")
    rows = json.loads(done.stdout)["results"]
    assert [row["implementation"] for row in rows] == (["twins", "recommended"] if "--recommended" in options else ["twins"])
    for row in rows:
        assert frameworks == set(row["versions"])
        assert (row["param_count"], row["format"]) == (41514 / 1e6, "nchw" if backend == "torch" else "nhwc")


def fake(answers):
    """A worker of `run.compare` that gives such answers, or raises them; `started` are the cases, by the order of starts."""

    class Fake:
        about, times, closed, started = {}, [], 0, []

        def __init__(self, case):
            self.case, self.times = case, []
            Fake.started.append(case["implementation"])

        def ask(self, line):
            answer = answers(self.case, line, Fake.started.count(self.case["implementation"]))
            if isinstance(answer, Exception):
                raise answer
            return answer

        def close(self):
            Fake.closed += 1

    return Fake


def cases(**options):
    options = {
        "batch": 8,
        "format": None,
        "compile": False,
        "cuda_graphs": False,
        "device": "cpu",
    } | options
    return run.cases_of("resnet18", "infer", (32, 32), options, ["torch"], ["float32"], ["torchvision", "timm"], False)


def good(case, line, start=1):
    """What a worker answers; the candidate's own processes are numbered from 1."""
    if line == "turn":
        theirs = case["implementation"] != "twins"
        return (
            {"flops": 1e9 * start, "bytes": 1e9 / start}
            if case["implementation"] == "ceiling"
            else {"times": [9.0 * (1 + theirs * start)], "peak": 2**20 * start}
        )
    return {"parameters": 11689512, "first_call": start**2, "device": "a machine", "versions": {}, "threads": 1}


def test_every_sitting_has_processes_of_its_own(monkeypatch):
    worker = fake(good)
    monkeypatch.setattr(run, "Worker", worker)
    candidates, notes = run.compare(cases(), 3, 2, lambda text: None)
    names = ["twins", "torchvision", "timm", "ceiling"]
    assert worker.started == [*names, *names[::-1], *names]
    assert (worker.closed, notes) == (12, [])
    assert [[w.case["implementation"] for w in workers] for workers in candidates] == [[name] * 3 for name in names]
    assert all(len(w.times) == 2 for workers in candidates for w in workers)
    best = run.ceilings(candidates)
    assert best == {("torch", "float32"): {"flops": 3e9, "bytes": 1e9}}
    twins, timm = (row for row in run.rows(candidates, best) if row["implementation"] in ("twins", "timm"))
    assert twins["ratios"]["timm"] == {"median": 3, "low": 2.5, "high": 3.5, "each": [2, 3, 4]}
    assert (timm["first_call"], timm["peak_memory"], timm["steps"], timm["processes"]) == (4000, 3, 6, 3)


def test_a_ratio_is_that_of_sittings():
    class Sat:
        def __init__(self, *times):
            self.times = [{"times": [time]} for time in times]

    # Turn by turn: the machine has slowed down between them, for both
    ours, theirs = [Sat(1, 10, 100), Sat(1, 1, 1)], [Sat(2, 30, 400), Sat(7, 9, 900)]
    assert run.ratio(ours, theirs) == {"median": 6, "low": 4.5, "high": 7.5, "each": [3, 9]}
    assert run.ratio(ours[:1], theirs) == {"median": 3, "low": 2.5, "high": 3.5, "each": [3]}


def test_the_batch_halves_until_there_is_memory(monkeypatch):
    def answers(case, line, start):
        return MemoryError() if case["implementation"] == "timm" and line == "turn" and case["batch"] > 2 else good(case, line)

    worker = fake(answers)
    monkeypatch.setattr(run, "Worker", worker)
    candidates, notes = run.compare(cases(), 1, 3, lambda text: None)
    assert [w.case["batch"] for (w,) in candidates] == [2, 2, 2, 2]
    assert notes == [
        "resnet18, infer, torch: out of memory with a batch of 8 (4 processes at once), measured with 4",
        "resnet18, infer, torch: out of memory with a batch of 4 (4 processes at once), measured with 2",
    ]
    assert worker.closed == 12  # none is left running
    twins, *_ = run.rows(candidates, run.ceilings(candidates))
    assert twins["ratios"]["timm"] == {"median": 2, "low": 2, "high": 2, "each": [2]}
    monkeypatch.setattr(run, "Worker", fake(lambda case, line, start: MemoryError()))
    candidates, notes = run.compare(cases(batch=1), 3, 3, lambda text: None)
    assert (candidates, notes) == ([], ["resnet18, infer, torch: out of memory with a batch of 1 (1 processes at once)"])


def test_all_sittings_have_one_batch(monkeypatch):
    def answers(case, line, start):
        short = case["implementation"] == "timm" and case["batch"] == 8 and start == 2
        return MemoryError() if short else good(case, line) | ({"times": [case["batch"]]} if line == "turn" else {})

    worker = fake(answers)
    monkeypatch.setattr(run, "Worker", worker)
    candidates, notes = run.compare(cases(), 3, 2, lambda text: None)
    assert len(candidates) == 4 and all(len(workers) == 3 for workers in candidates)
    assert all(turn["times"] == [4] for workers in candidates for w in workers for turn in w.times)
    assert notes == ["resnet18, infer, torch: out of memory with a batch of 8 (2 processes at once), measured with 4"]
    assert worker.closed == len(worker.started) == 4 + 2 + 12


def test_no_worker_is_left_running(monkeypatch):
    worker = fake(lambda case, line, start: MemoryError() if case["implementation"] == "timm" else good(case, line))
    monkeypatch.setattr(run, "Worker", worker)
    candidates, notes = run.compare(cases(batch=2), 3, 3, lambda text: None)
    assert (candidates, worker.closed, len(notes)) == ([], 6, 2)  # twins, torchvision and timm, with batches of 2 and 1


def test_who_fails_in_a_turn_is_left_out(monkeypatch):
    def answers(case, line, start):
        failed = line == "turn" and case["implementation"] in ("timm", "ceiling")
        return run.Failed(f"{case['implementation']} failed: x") if failed else good(case, line)

    monkeypatch.setattr(run, "Worker", fake(answers))
    candidates, notes = run.compare(cases(), 1, 3, lambda text: None)
    assert [(w.case["implementation"], len(w.times)) for (w,) in candidates] == [("twins", 3), ("torchvision", 3)]
    assert notes == [f"resnet18, infer, torch: {name} failed: x" for name in ("timm", "ceiling")]
    twins, _ = run.rows(candidates, run.ceilings(candidates))
    assert twins["ceiling_fraction"] is None and twins["ratios"].keys() == {"torchvision"}


@pytest.mark.parametrize("moment", ["start", "turn"])
def test_who_fails_in_a_later_sitting_has_no_further_ones(moment, monkeypatch, capsys):
    def answers(case, line, start):
        failed = case["implementation"] == "torchvision" and start == 2 and (line == "turn") == (moment == "turn")
        return run.Failed("torchvision failed: x") if failed else good(case, line, start)

    worker = fake(answers)
    monkeypatch.setattr(run, "Worker", worker)
    with pytest.raises(SystemExit):
        run.run(
            ["torch"], ["resnet18"], mode="infer", dtype=["float32"], size=32, against="torchvision", processes=4,
            json_file="-", device="cpu",
        )  # fmt: skip
    found = json.loads(capsys.readouterr().out)
    assert [(row["implementation"], row["processes"]) for row in found["results"]] == [("twins", 4), ("torchvision", 1)]
    assert found["results"][0]["ratios"]["torchvision"]["each"] == [2]
    failed, few = found["notes"]
    assert failed.endswith("torchvision failed: x")
    assert few == "resnet18, infer, torch torchvision: measured in 1 of 4 processes"
    assert worker.closed == len(worker.started) == 3 + 3 + 2 + 2


def test_names_of_candidates():
    case = {"implementation": "twins", "backend": "torch", "dtype": "float32"}
    assert run.called(case | {"implementation": "timm"}, case) == "timm"
    assert run.called(case | {"dtype": "bfloat16"}, case) == "twins (bfloat16)"
    assert run.called(case | {"backend": "tf", "dtype": "bfloat16"}, case) == "twins (tf, bfloat16)"
    options = {"batch": 8, "format": None}
    found = run.cases_of("resnet18", "train", None, options, ["torch", "tf"], ["float32", "bfloat16"], ["timm"], True)
    torch_names = ["twins", "recommended", "timm", "ceiling"]  # in Keras, what is recommended for training is the default
    assert [case["implementation"] for case in found] == [
        *torch_names * 2,
        *["twins", "ceiling"] * 2,
    ]  # Keras trains as it does
    assert [case["dtype"] for case in found] == ["float32"] * 4 + ["bfloat16"] * 4 + ["float32"] * 2 + ["bfloat16"] * 2


def test_startup(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(startup, "python", lambda code: 3.0 if "torch_impl.build" in code else 2.0)
    monkeypatch.setattr(startup, "command", lambda *words: 1.0)
    startup.main(2, tmp_path / "found.json")
    found = json.loads((tmp_path / "found.json").read_text())["milliseconds"]
    assert found["`twins list`"] == {"median": 1, "lowest": 1, "highest": 1}
    assert found["`torch_impl.build`"]["ratio"] == 1.5
    assert "1.50" in capsys.readouterr().out


def test_startup_goes_on_without_who_fails(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(startup, "command", lambda *words: 1.0)
    monkeypatch.setattr(startup, "IMPORTS", {})
    monkeypatch.setattr(startup, "BUILDS", {startup.TORCHVISION: ("import no_such", "1"), "another": ("import os", "1")})
    monkeypatch.setattr(startup, "PACKAGES", ("torch", "no_such"))
    startup.main(2, tmp_path / "found.json")
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["milliseconds"].keys() == {"`twins list`", "`twins show resnet152`", "another"}
    assert "ratio" not in found["milliseconds"]["another"]
    assert found["notes"] == ["torchvision's constructor failed: ModuleNotFoundError: No module named 'no_such'"]
    assert found["versions"] == {"torch": torch.__version__.partition("+")[0], "no_such": None}
    shown = capsys.readouterr().out
    assert "another" in shown and found["notes"][0] in shown.splitlines()


@pytest.mark.skipif(not shutil.which("git"), reason="git is not installed")
def test_results_say_of_which_commit_they_are(monkeypatch, tmp_path):
    def git(*words):
        command = ["git", "-c", "user.name=x", "-c", "user.email=x@example.org", *words]
        return subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True).stdout.strip()

    monkeypatch.setattr(run, "__file__", str(tmp_path / "run.py"))
    git("init")
    assert run.origin()["commit"] is None
    (tmp_path / "run.py").write_text("1")
    git("add", ".")
    git("commit", "-m", "x")
    git("tag", "-a", "v1", "-m", "x")
    assert run.origin()["commit"] == git("rev-parse", "--short", "HEAD")
    (tmp_path / "run.py").write_text("2")
    assert run.origin()["commit"] == git("rev-parse", "--short", "HEAD") + "+"
    monkeypatch.setenv("PATH", str(tmp_path))
    assert run.origin()["commit"] is None


def test_a_peer_that_cannot_is_left_out(monkeypatch):
    def answers(case, line, start):
        if case["implementation"] == "torchvision":
            return run.Failed("torchvision has no resnet18")
        return good(case, line) | ({"parameters": 7} if case["implementation"] == "timm" else {})

    monkeypatch.setattr(run, "Worker", fake(answers))
    candidates, notes = run.compare(cases(), 2, 1, lambda text: None)
    assert [w.case["implementation"] for w, _ in candidates] == ["twins", "ceiling"]
    assert notes == ["torchvision has no resnet18", "timm's resnet18 has 7 parameters, not 11,689,512: another network"]


def test_a_timer_that_does_not_wait_is_above_the_ceiling(monkeypatch, capsys):
    quick = {"times": [1e-6], "peak": 2**20}
    monkeypatch.setattr(run, "Worker", fake(lambda case, line, start: good(case, line) | (quick if line == "turn" else {})))
    with pytest.raises(SystemExit) as ended:
        run.run(["torch"], ["resnet18"], mode="infer", dtype=["float32"], size=32, against="", json_file="-", device="cpu")
    assert ended.value.code == 1
    (note,) = json.loads(capsys.readouterr().out)["notes"]
    assert "of what the machine can do: the measurement is wrong" in note


def test_least_counts_what_the_machine_must_do():
    (case, *_) = run.cases_of("lenet", "train", None, {"batch": 2, "format": None}, ["torch"], ["float32"], [], False)
    layers = shapes.layers(case["spec"])
    macs = [layer.macs for layer in layers if layer.macs]
    flops = 2 * 2 * (3 * sum(macs) - macs[0])  # no gradient of the images
    assert run.least(case, layers, {"flops": 1, "bytes": 1e9}) == flops
    moved = 4 * (3 * shapes.parameters(layers) + 2 * np.prod(case["spec"]["input"]))
    assert run.least(case, layers, {"flops": 1e12, "bytes": 1}) == moved
    infer = case | {"mode": "infer", "dtype": "bfloat16"}
    assert run.least(infer, layers, {"flops": 1, "bytes": 1e9}) == 4 * sum(macs)
    moved = 2 * (shapes.parameters(layers) + 2 * np.prod(case["spec"]["input"]))
    assert run.least(infer, layers, {"flops": 1e12, "bytes": 1}) == moved


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--network", "resnet19"], "no network is called 'resnet19', did you mean 'resnet18'?"),
        (["--size", "0"], "--size is 0, expected a whole number of at least 1"),
        (["--processes", "0"], "--processes is 0, expected a whole number of at least 1"),
        (["--network", "mnist_residual", "--size", "4"], "mnist_residual, images of 4x4: layer 'conv1': the image is too"),
        (["--json", "nowhere/x.json"], "nowhere/x.json: there is no folder nowhere"),
        (["--csv", "benchmarks"], "benchmarks: cannot be written"),
        (["--plot", "x.gif"], "x.gif: expected a file ending in .png, .pdf, .svg"),
        (["--dtype", "float23"], "--dtype is 'float23', did you mean 'float32'?; expected float32, tf32, bfloat16, float16"),
        (["--dtype", "tf32", "--device", "cpu"], "--dtype tf32 is for GPUs; expected float32, bfloat16 or float16 on a CPU"),
        (["--backend", "tf", "--format", "nchw"], "--format nchw is for --backend torch"),
        (["--cuda-graphs", "--device", "cpu"], "--cuda-graphs is for --backend torch on a GPU"),
        (["--against", "keras_hub"], "--against keras_hub is for --backend tf or jax or keras-torch"),
    ],
)
def test_a_mistake_is_one_line(options, message):
    done = benchmark("--backend", "torch", *options)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"run.py: {message}")
    assert done.stderr.count("\n") == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_it_says_so():
    done = benchmark("--backend", "torch", "--network", "lenet", "--device", "gpu")
    assert (done.returncode, done.stderr, done.stdout) == (1, "", "PyTorch sees no GPU; --device cpu measures the processor\n")


def test_the_table_of_networks(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["parity.py", "--network", "lenet_caffe", "resnet20"])
    parity.main()
    _, _, *rows = capsys.readouterr().out.splitlines()
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    assert [row[0] for row in cells] == ["`lenet_caffe`", "`resnet20`"]
    assert [row[2:4] for row in cells] == [
        ["431,080", "BVLC/caffe lenet"],
        ["269,722", "akamaster/pytorch_resnet_cifar10 resnet20"],
    ]
    for row in cells:
        outputs, gradients = (float(cell.split()[0]) for cell in row[4:])
        assert 0 < outputs <= 1e-12 and 0 < gradients <= 1e-9


def test_the_ratios_in_the_readme_are_in_the_results():
    section = (ROOT / "README.md").read_text().partition("## Benchmarks")[2]
    stated = re.findall(r"\d+\.\d\d \(\d+\.\d\d–\d+\.\d\d\)", section)
    results = [json.loads(path.read_text()) for path in (ROOT / "benchmarks/results").glob("*.json")]
    ratios = [ratio for found in results for row in found.get("results", []) for ratio in row["ratios"].values()]
    assert len(stated) > 10 and set(stated) <= set(map(run.in_words, ratios))


def test_the_readme_has_every_network_in_its_table():
    text = (ROOT / "README.md").read_text()
    for name in shared.names():
        assert f"| `{name}` | " in text, name
