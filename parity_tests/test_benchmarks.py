"""The benchmarks: run.py as a user runs it, and its parts on workers that are not real."""

import csv
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import shared
from shared import files, shapes
from twins import training
from twins.backends import Backend

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import candidates
import cifar10_folder
import kills
import origin
import parity
import pictures
import report
import run
import script
import sittings
import startup
import suite
import summary
import switch
import worker
from candidates import Dtype, Mode, Peer, Settings

ROOT = Path(__file__).parents[1]


def benchmark(*options):
    options = [*options, *([] if "--device" in options else ["--device", "cpu"])]
    command = [sys.executable, "benchmarks/run.py", *map(str, options)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)


@pytest.mark.long
def test_side_by_side_with_a_peer(tmp_path):
    files = [f"--{kind}={tmp_path / f'results.{end}'}" for kind, end in (("json", "json"), ("csv", "csv"), ("plot", "png"))]
    options = ["--network", "resnet18", "--size", 32, "--batch", 2, "--processes", 2, "--rounds", 1, "--mode", "train"]
    done = benchmark("--backend", "torch", *options, "--against", "torchvision", "--recommended", *files)
    assert (done.returncode, done.stderr) == (0, "")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["results.csv", "results.json", "results.png"]
    results = json.loads((tmp_path / "results.json").read_text())
    assert {"date", "commit", "python", "platform", "notes"} <= set(results)
    assert results["command"].startswith("python benchmarks/run.py --backend torch --network resnet18")

    rows, implementations = results["results"], ["twins", "recommended", "torchvision"]
    assert [row["implementation"] for row in rows] == implementations
    layers = shapes.layers(shared.load("resnet18"), (32, 32))
    for row in rows:
        assert (row["network"], row["mode"]) == ("resnet18", "train")
        assert (row["batch_size"], row["img_size"], row["dtype"]) == (2, [32, 32], "float32")
        assert row["gmacs"] == sum(layer.macs for layer in layers) / 1e9
        assert row["param_count"] == shapes.parameters(layers) / 1e6
        assert row[f"{row['mode']}_samples_per_sec"] == pytest.approx(2000 / row["step_time"])
        assert 0 < row["step_time"] <= row["step_time_p95"] and row["steps"] >= row["processes"] == 2
        assert 0 < row["ceiling_fraction"] <= summary.SLACK and row["first_call"] > 0 and row["peak_memory"] > 100
        assert (row["format"], row["fold"]) == ("nhwc" if row["implementation"] == "recommended" else "nchw", False)
        others = set(implementations) - {row["implementation"]} if row["implementation"] in candidates.OURS else set()
        assert set(row["ratios"]) == others
        for ratio in row["ratios"].values():
            assert 0 < ratio["low"] <= ratio["median"] <= ratio["high"] and len(ratio["each"]) == 2
    table = list(csv.DictReader((tmp_path / "results.csv").open()))
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
    """A worker that gives such answers, or raises them; `started` are the implementations, by the order of starts."""

    class Fake:
        closed, started = 0, []

        def __init__(self, case):
            self.case, self.about, self.turns = case, {}, []
            Fake.started.append(case["implementation"])

        def ask(self, line):
            answer = answers(self.case, line, Fake.started.count(self.case["implementation"]))
            if isinstance(answer, Exception):
                raise answer
            return answer

        def close(self):
            Fake.closed += 1

    return Fake


def cases(batch=8):
    """What `test_side_by_side_with_a_peer` measures, in inference."""
    settings = Settings([Backend.TORCH], peers=[Peer.TORCHVISION, Peer.TIMM], batch=batch, size=32)
    return candidates.cases("resnet18", Mode.INFER, settings)


def compare(cases, processes, rounds):
    return sittings.compare(cases, processes, rounds, lambda text: None)


def implementations(workers):
    return [worker.case["implementation"] for worker in workers]


def good(case, line, start=1):
    """What a worker answers, the first, second, ... of its candidate's processes."""
    if line == "turn":
        theirs = case["implementation"] != "twins"
        return (
            {"flops": 1e9 * start, "bytes": 1e9 / start}
            if case["implementation"] == "ceiling"
            else {"times": [9.0 * (1 + theirs * start)], "peak": 2**20 * start}
        )
    return {"parameters": 11689512, "first_call": start**2, "device": "a machine", "versions": {}, "threads": 1}


def shown(results, capsys):
    """The lines of the table of such results, and of what is said below it."""
    report.show(results, [], {})
    return capsys.readouterr().out.splitlines()


def results_of(settings, monkeypatch, network="resnet50_keras"):
    """Rows of workers that are not real."""
    monkeypatch.setattr(sittings, "Worker", fake(lambda *case: good(*case) | {"parameters": None}))
    monkeypatch.setattr(sittings, "check_same", lambda case, parameters: None)
    measured, _ = sittings.compare(candidates.cases(network, Mode.TRAIN, settings), 3, 2, lambda text: None)
    return summary.rows(measured, summary.ceilings(measured))


def test_the_table_reads_at_a_glance(monkeypatch, capsys):
    peers = [Peer.KERAS_APPLICATIONS, Peer.TWINS]
    rows = results_of(Settings([Backend.TF], [Dtype.FLOAT32, Dtype.BFLOAT16], peers), monkeypatch)
    heading, titles, *lines = shown(rows, capsys)
    assert all(len(line) <= 80 for line in (heading, titles, *lines))
    assert titles.split() == ["network", "mode", "candidate", "type", "images/s", "ceiling", "the", "peer"]
    names = [f"{name} {dtype}" for dtype in ("float32", "bfloat16") for name in ("twins", "keras.applications", "twins again")]
    for line, name in zip(lines, names, strict=False):
        assert " ".join(line.split()).startswith(f"resnet50_keras train tf {name} ")
    ratio = rows[0]["ratios"]["keras.applications"]
    assert lines[0].endswith(f"{ratio['median']:.2f} ±{(ratio['high'] - ratio['low']) / 2:.2f} ")
    assert "The peer: keras.applications for tf" in lines


@pytest.mark.parametrize(
    ("settings", "peer"),
    [
        (Settings([Backend.TORCH], peers=[Peer.TWINS, Peer.TIMM]), "timm"),
        (Settings([Backend.TORCH], peers=[Peer.TWINS]), "twins again"),
        (Settings([Backend.TORCH], recommended=True), None),
        (Settings([Backend.TORCH, Backend.TF]), "twins (tf)"),
        (Settings([Backend.TORCH], [Dtype.FLOAT32, Dtype.BFLOAT16], [Peer.TORCHVISION]), "torchvision"),
    ],
)
def test_the_one_ratio_of_the_table(settings, peer, monkeypatch):
    first, *_ = results_of(settings, monkeypatch, "resnet18")
    assert report.beside(first) == peer


def test_forms_are_told_where_they_differ(monkeypatch, capsys):
    rows = results_of(Settings([Backend.TORCH], recommended=True, compiled=True), monkeypatch, "resnet18")
    assert [report.form(row) for row in rows] == ["nchw compiled 16", "nhwc compiled 16"]
    assert "form" in shown(rows, capsys)[1].split()
    assert "form" not in shown(rows[:1], capsys)[1].split()


@pytest.fixture
def a_suite(monkeypatch, tmp_path):
    """(what takes a suite into a folder, the fake workers)."""
    worker = fake(lambda *case: good(*case) | {"parameters": 11689512})
    monkeypatch.setattr(sittings, "Worker", worker)
    seconds = itertools.count()
    monkeypatch.setattr(suite, "origin", lambda: origin.origin() | {"date": f"second {next(seconds)}"})  # as real calls differ

    def take(minutes=10, name=suite.Suite.CPU, network="resnet18"):
        with pytest.raises(SystemExit) as ended:
            suite.main(name, tmp_path / "out", [network], 32, minutes, 1)
        return ended.value.code

    return take, worker


def test_a_suite_goes_on_where_it_ended(a_suite, tmp_path, capsys):
    take, worker = a_suite
    assert take(minutes=0) == 0
    assert "1 of 16 comparisons are done; the same command continues" in capsys.readouterr().err
    first = (tmp_path / "out/measured.jsonl").read_text()
    started = len(worker.started)
    assert take() == 0
    out, err = capsys.readouterr()
    kept = (tmp_path / "out/measured.jsonl").read_text()
    assert kept.startswith(first) and kept.count("\n") == 16 and "continues" not in err
    assert max(map(len, out.splitlines())) <= 80
    now = worker.started[started:]
    # The first comparison is not measured again, but its ceiling is: a ceiling is of one call, once for each precision
    assert now.count("torchvision") == 5 and now.count("ceiling") == 6 and worker.started.count("torchvision") == 6
    results = json.loads((tmp_path / "out/results.json").read_text())["results"]
    assert {(row["mode"], row["dtype"], row["backend"]) for row in results} == {
        (mode, dtype, backend)
        for mode in ("infer", "train")
        for dtype in ("float32", "bfloat16")
        for backend in ("torch", "tf", "jax")
    }
    assert all(row["ceiling_fraction"] for row in results)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "measured.jsonl", "results.json", "results.csv", "results.png",
    }  # fmt: skip
    count = len(worker.started)
    (tmp_path / "out/measured.jsonl").write_text("".join(reversed(kept.splitlines(keepends=True))))
    assert take() == 0 and len(worker.started) == count  # nothing is left to measure
    assert json.loads((tmp_path / "out/results.json").read_text())["results"] == results  # whatever was measured last


def test_each_result_has_the_commit_that_was_measured(a_suite, tmp_path, monkeypatch):
    """Not that of the last call; none, in a file of an earlier version."""
    take, worker = a_suite
    commits, real = iter(["first", "second", "third"]), suite.origin
    monkeypatch.setattr(suite, "origin", lambda: real() | {"commit": next(commits)})
    take(minutes=0)
    take()

    def results():
        return json.loads((tmp_path / "out/results.json").read_text())

    found = [row["commit"] for row in results()["results"]]
    count = found.count("first")
    assert 0 < count < len(found) and found == ["first"] * count + ["second"] * (len(found) - count)
    table = list(csv.DictReader((tmp_path / "out/results.csv").open()))
    assert [row["commit"] for row in table] == found
    kept = tmp_path / "out/measured.jsonl"
    lines = [json.loads(line) for line in kept.read_text().splitlines()]
    assert all(line.pop("commit") for line in lines)
    kept.write_text("".join(json.dumps(line) + "\n" for line in lines))
    started = len(worker.started)
    take()
    assert results()["commit"] == "third" and {row["commit"] for row in results()["results"]} == {None}
    assert len(worker.started) == started


def test_more_processes_are_another_measurement():
    one = suite.comparisons(suite.Suite.CPU, ["resnet18"], None)[0]
    assert json.loads(one.key(5)) == json.loads(one.key(1)) | {"processes": 5} and "processes" not in one.key(1)


def test_a_suite_keeps_the_fastest_forms_for_the_screen():
    def row(rate, mode="infer", **others):
        return {"network": "n", "mode": mode, "backend": "torch", "implementation": "twins", "dtype": "float32"} | others | {
            f"{mode}_samples_per_sec": rate
        }  # fmt: skip

    rows = [row(3, "train"), row(1), row(2, form="b"), row(7, dtype="bfloat16"), row(1, form="c")]
    assert suite.fastest(rows) == [row(2, form="b"), row(7, dtype="bfloat16"), row(3, "train")]


def test_a_suite_of_another_device(a_suite, tmp_path, capsys, monkeypatch):
    take, _ = a_suite
    take(minutes=0)
    kept = (tmp_path / "out/measured.jsonl").read_text()
    elsewhere = fake(lambda *case: good(*case) | {"parameters": 11689512, "device": "another machine"})
    monkeypatch.setattr(sittings, "Worker", elsewhere)
    with pytest.raises(shared.Error, match="out: measured on a machine, and this is another machine: name another folder"):
        suite.main(suite.Suite.CPU, tmp_path / "out", ["resnet18"], 32, 10, 1)
    assert (tmp_path / "out/measured.jsonl").read_text() == kept
    (tmp_path / "out/measured.jsonl").write_text("[]\n")
    with pytest.raises(shared.Error, match="measured.jsonl: not what a suite has measured"):
        suite.main(suite.Suite.CPU, tmp_path / "out", ["resnet18"], 32, 10, 1)


def test_what_is_not_installed_is_tried_again(a_suite, tmp_path, monkeypatch, capsys):
    take, _ = a_suite
    monkeypatch.setattr(sittings, "Worker", fake(lambda *case: sittings.Failed("jax is not installed: pip install jax")))
    assert take() == 1
    assert "jax is not installed: pip install jax" in capsys.readouterr().out
    assert not (tmp_path / "out/measured.jsonl").exists()


def test_the_table_of_a_gpu():
    planned = suite.comparisons(suite.Suite.GPU, suite.NETWORKS[suite.Suite.GPU], None)
    assert {comparison.network for comparison in planned} == {"resnet18", "resnet50", "drn_c_26", "drn_d_54"}
    assert len({comparison.key(1) for comparison in planned}) == len(planned)
    for comparison in planned:
        comparison.settings.check()
        assert candidates.cases(*comparison)
    forms = {
        (str(one.backends[0]), str(one.dtypes[0]), str(one.layout), one.batch, one.compiled, one.cuda_graphs)
        for one in (comparison.settings for comparison in planned)
    }
    assert {("torch", dtype, "nhwc", 64, False, False) for dtype in ("float32", "tf32", "bfloat16")} <= forms
    assert {
        ("torch", "bfloat16", "nhwc", batch, False, graphs) for batch in (1, 16, 64, 256) for graphs in (False, True)
    } <= forms
    assert {("torch", "bfloat16", "nchw", 64, False, False), ("torch", "bfloat16", "nhwc", 64, True, False)} <= forms
    assert {(backend, "bfloat16", "nhwc", 64, False, False) for backend in ("jax", "tf")} <= forms


@pytest.mark.skipif(bool(shutil.which("nvidia-smi")), reason="this machine has a GPU")
def test_a_suite_without_a_gpu(monkeypatch, capsys, tmp_path):
    options = ("--suite", "gpu", "--out", tmp_path)
    status, out, err = scripted(suite.main, *options, monkeypatch=monkeypatch, capsys=capsys)
    assert (status, out) == (2, "") and err.startswith("script.py: --suite gpu: nvidia-smi is not installed")


@pytest.mark.long
def test_a_suite_on_a_processor(tmp_path):
    command = [sys.executable, "benchmarks/run.py", "--suite", "cpu", "--network", "resnet18", "--size", "32"]
    command += ["--minutes", "0", "--out", str(tmp_path)]
    for done in (1, 2):
        ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
        assert ended.returncode == 0 and f"{done} of 16 comparisons are done" in ended.stderr
    rows = json.loads((tmp_path / "results.json").read_text())["results"]
    assert {row["mode"] for row in rows} == {"infer", "train"}
    assert all(0 < row["ceiling_fraction"] <= summary.SLACK for row in rows)


def test_every_sitting_has_processes_of_its_own(monkeypatch):
    worker = fake(good)
    monkeypatch.setattr(sittings, "Worker", worker)
    measured, notes = compare(cases(), 3, 2)
    names = ["twins", "torchvision", "timm", "ceiling"]
    assert worker.started == [*names, *names[::-1], *names]
    assert (worker.closed, notes) == (12, [])
    assert [implementations(workers) for workers in measured] == [[name] * 3 for name in names]
    assert all(len(w.turns) == 2 for workers in measured for w in workers)
    ceilings = summary.ceilings(measured)
    assert ceilings == {("torch", "float32"): {"flops": 3e9, "bytes": 1e9}}
    twins, timm = (row for row in summary.rows(measured, ceilings) if row["implementation"] in ("twins", "timm"))
    assert twins["ratios"]["timm"] == {"median": 3, "low": 2.5, "high": 3.5, "each": [2, 3, 4]}
    assert (timm["first_call"], timm["peak_memory"], timm["steps"], timm["processes"]) == (4000, 3, 6, 3)


def test_a_ratio_is_that_of_sittings():
    class Sat:
        def __init__(self, *times):
            self.turns = [{"times": [time]} for time in times]

    # Turn by turn: the machine has slowed down between them, for both
    ours, theirs = [Sat(1, 10, 100), Sat(1, 1, 1)], [Sat(2, 30, 400), Sat(7, 9, 900)]
    assert summary.ratio(ours, theirs) == {"median": 6, "low": 4.5, "high": 7.5, "each": [3, 9]}
    assert summary.ratio(ours[:1], theirs) == {"median": 3, "low": 2.5, "high": 3.5, "each": [3]}


def test_the_batch_halves_until_there_is_memory(monkeypatch):
    def answers(case, line, start):
        return MemoryError() if case["implementation"] == "timm" and line == "turn" and case["batch"] > 2 else good(case, line)

    worker = fake(answers)
    monkeypatch.setattr(sittings, "Worker", worker)
    measured, notes = compare(cases(), 1, 3)
    assert [w.case["batch"] for (w,) in measured] == [2, 2, 2, 2]
    assert notes == [
        "resnet18, infer, torch: out of memory with a batch of 8 (4 processes at once), measured with 4",
        "resnet18, infer, torch: out of memory with a batch of 4 (4 processes at once), measured with 2",
    ]
    assert worker.closed == 12  # none is left running
    twins, *_ = summary.rows(measured, summary.ceilings(measured))
    assert twins["ratios"]["timm"] == {"median": 2, "low": 2, "high": 2, "each": [2]}
    monkeypatch.setattr(sittings, "Worker", fake(lambda case, line, start: MemoryError()))
    measured, notes = compare(cases(batch=1), 3, 3)
    assert (measured, notes) == ([], ["resnet18, infer, torch: out of memory with a batch of 1 (1 processes at once)"])


@pytest.fixture
def sleeper(monkeypatch):
    """A worker that answers nothing, with a child of its own."""
    code = "import subprocess, sys; subprocess.run(['sleep', '60'])"
    popen = subprocess.Popen
    monkeypatch.setattr(sittings.subprocess, "Popen", lambda command, **options: popen([sys.executable, "-c", code], **options))
    worker = sittings.Worker(cases()[0])
    yield worker
    worker.close()


def test_a_killed_worker_is_out_of_memory_only_if_memory_ran_out(sleeper, monkeypatch):
    sleeper.process.kill()
    with pytest.raises(sittings.Failed, match="^twins was killed by SIGKILL$"):
        sleeper.ask("turn")
    monkeypatch.setattr(sittings, "oom_kills", lambda: sleeper.oom_kills + 1)
    with pytest.raises(MemoryError):
        sleeper.ask("turn")


def test_a_worker_ends_with_its_children(sleeper):
    children = Path(f"/proc/{sleeper.process.pid}/task/{sleeper.process.pid}/children")
    assert waited(children.read_text)
    child = children.read_text().strip()
    sleeper.close()
    assert waited(lambda: ended(child))


def waited(condition):
    """Whether a condition holds within ten seconds."""
    started = time.monotonic()
    while not condition():
        if time.monotonic() - started > 10:
            return False
        time.sleep(0.01)
    return True


def ended(process):
    """Whether a process has ended; one that nobody has waited for is a zombie."""
    state = Path(f"/proc/{process}/stat")
    return not state.exists() or state.read_text().rpartition(")")[2].split()[0] == "Z"


def test_the_time_left(monkeypatch):
    said, now = [], [0.0]
    monkeypatch.setattr(run.time, "monotonic", lambda: now[0])
    tell = run.with_time_left(said.append, 4)
    for step in (100, 10, 10, 10):
        tell("turn")
        now[0] += step
    assert said == ["turn, 20 s left", "turn, 5 min left", "turn, 2 min left", "turn, 40 s left"]


@pytest.mark.long
def test_a_terminated_benchmark_leaves_no_children():
    command = [sys.executable, "benchmarks/run.py", "--backend", "torch", "--network", "mnist_residual", "--device", "cpu"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    assert waited(children.read_text)
    child = children.read_text().split()[0]
    process.terminate()
    assert process.wait(20) == 128 + 15
    assert waited(lambda: ended(child))


def test_all_sittings_have_one_batch(monkeypatch):
    def answers(case, line, start):
        short = case["implementation"] == "timm" and case["batch"] == 8 and start == 2
        return MemoryError() if short else good(case, line) | ({"times": [case["batch"]]} if line == "turn" else {})

    worker = fake(answers)
    monkeypatch.setattr(sittings, "Worker", worker)
    measured, notes = compare(cases(), 3, 2)
    assert len(measured) == 4 and all(len(workers) == 3 for workers in measured)
    assert all(turn["times"] == [4] for workers in measured for w in workers for turn in w.turns)
    assert notes == ["resnet18, infer, torch: out of memory with a batch of 8 (2 processes at once), measured with 4"]
    assert worker.closed == len(worker.started) == 4 + 2 + 12


def test_no_worker_is_left_running(monkeypatch):
    worker = fake(lambda case, line, start: MemoryError() if case["implementation"] == "timm" else good(case, line))
    monkeypatch.setattr(sittings, "Worker", worker)
    measured, notes = compare(cases(batch=2), 3, 3)
    assert (measured, worker.closed, len(notes)) == ([], 6, 2)  # twins, torchvision and timm, with batches of 2 and 1


def test_a_failure_in_a_turn_leaves_the_candidate_out(monkeypatch):
    def answers(case, line, start):
        failed = line == "turn" and case["implementation"] in ("timm", "ceiling")
        return sittings.Failed(f"{case['implementation']} failed: x") if failed else good(case, line)

    monkeypatch.setattr(sittings, "Worker", fake(answers))
    measured, notes = compare(cases(), 1, 3)
    assert [(w.case["implementation"], len(w.turns)) for (w,) in measured] == [("twins", 3), ("torchvision", 3)]
    assert notes == [f"resnet18, infer, torch: {name} failed: x" for name in ("timm", "ceiling")]
    twins, _ = summary.rows(measured, summary.ceilings(measured))
    assert twins["ceiling_fraction"] is None and twins["ratios"].keys() == {"torchvision"}


@pytest.mark.parametrize("moment", ["start", "turn"])
def test_a_candidate_that_fails_in_a_later_sitting_has_no_further_ones(moment, monkeypatch, capsys):
    def answers(case, line, start):
        failed = case["implementation"] == "torchvision" and start == 2 and (line == "turn") == (moment == "turn")
        return sittings.Failed("torchvision failed: x") if failed else good(case, line, start)

    worker = fake(answers)
    monkeypatch.setattr(sittings, "Worker", worker)
    options = {"mode": Mode.INFER, "size": 32, "against": ["torchvision"], "processes": 4, "json_file": "-", "device": "cpu"}
    with pytest.raises(SystemExit):
        run.main([Backend.TORCH], **options)
    results = json.loads(capsys.readouterr().out)
    assert [(row["implementation"], row["processes"]) for row in results["results"]] == [("twins", 4), ("torchvision", 1)]
    assert results["results"][0]["ratios"]["torchvision"]["each"] == [2]
    failed, few = results["notes"]
    assert failed.endswith("torchvision failed: x")
    assert few == "resnet18, infer, torch torchvision: measured in 1 of 4 processes"
    assert worker.closed == len(worker.started) == 3 + 3 + 2 + 2


def test_names_of_candidates():
    case = {"implementation": "twins", "backend": "torch", "dtype": "float32"}
    assert summary.name_beside(case | {"implementation": "timm"}, case) == "timm"
    assert summary.name_beside(case | {"dtype": "bfloat16"}, case) == "twins (bfloat16)"
    assert summary.name_beside(case | {"backend": "tf", "dtype": "bfloat16"}, case) == "twins (tf, bfloat16)"
    dtypes = [Dtype.FLOAT32, Dtype.BFLOAT16]
    settings = Settings([Backend.TORCH, Backend.TF], dtypes, [Peer.TIMM], recommended=True)
    cases = candidates.cases("resnet18", Mode.TRAIN, settings)
    torch_names = ["twins", "recommended", "timm", "ceiling"]
    keras_names = ["twins", "ceiling"]  # what is recommended for training is the default there, and timm is for PyTorch
    assert [case["implementation"] for case in cases] == [*torch_names * 2, *keras_names * 2]
    assert [case["dtype"] for case in cases] == ["float32"] * 4 + ["bfloat16"] * 4 + ["float32"] * 2 + ["bfloat16"] * 2


def test_both_backends_are_pytorch_and_tensorflow():
    assert run.distinct_backends([Backend.BOTH]) == [Backend.TORCH, Backend.TF]
    assert run.distinct_backends([Backend.JAX, Backend.TF, Backend.BOTH]) == [Backend.JAX, Backend.TF, Backend.TORCH]


def test_peers_are_a_list_with_commas_or_repeated():
    assert candidates.read_peers(["torchvision,timm", "", "twins"]) == [Peer.TORCHVISION, Peer.TIMM, Peer.TWINS]
    assert candidates.read_peers(["timm,timm", "timm"]) == [Peer.TIMM]  # measured once
    assert run.complete_peers("torchvision,keras") == ["torchvision,keras.applications", "torchvision,keras_hub"]
    assert run.complete_peers("ti") == ["timm"]


def test_pictures(monkeypatch, capsys):
    """Reading them is measured, and the memory of the commands is that of both folders."""
    seen = []
    monkeypatch.setattr(pictures, "peak_memory", lambda command, folder, *rest: seen.append((command, folder.name)) or 10.0)
    monkeypatch.setattr(pictures, "with_pillow", lambda *arguments: 50.0)
    monkeypatch.setattr(pictures, "with_loader", lambda found, batch, workers: len(found) + batch + workers)
    monkeypatch.setattr(pictures, "PHOTOGRAPH", (50, 40))
    pictures.main(40, 2, 8, 2, 100, 120)
    out = capsys.readouterr().out
    assert seen == [(command, count) for command in ("evaluate", "train") for count in ("100", "120")]
    assert "the loader: 50 images/s, 1.00 of Pillow alone (1.00 to 1.00 in 2 turns)" in out
    assert "twins train, torch: 10 MB for 100 pictures, 10 MB for 120, +0 MB" in out
    assert pictures.pss(os.getpid()) > 50 and pictures.pss(2**30) == 0


def test_startup(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(startup, "python", lambda code: 3.0 if "torch_impl.build" in code else 2.0)
    monkeypatch.setattr(startup, "command", lambda *words: 1.0)
    startup.main(2, tmp_path / "results.json")
    times = json.loads((tmp_path / "results.json").read_text())["milliseconds"]
    assert times["`twins list`"] == {"median": 1, "lowest": 1, "highest": 1}
    assert times["`torch_impl.build`"]["ratio"] == 1.5
    assert "1.50" in capsys.readouterr().out


def test_startup_leaves_out_what_fails(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(startup, "command", lambda *words: 1.0)
    monkeypatch.setattr(startup, "IMPORTS", {})
    monkeypatch.setattr(startup, "BUILDS", {startup.TORCHVISION: ("import no_such", "1"), "another": ("import os", "1")})
    monkeypatch.setattr(startup, "PACKAGES", ("torch", "no_such"))
    startup.main(2, tmp_path / "results.json")
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["milliseconds"].keys() == {"`twins list`", "`twins show resnet152`", "another"}
    assert "ratio" not in results["milliseconds"]["another"]
    assert results["notes"] == ["torchvision's constructor failed: ModuleNotFoundError: No module named 'no_such'"]
    assert results["versions"] == {"torch": torch.__version__.partition("+")[0], "no_such": None}
    shown = capsys.readouterr().out
    assert "another" in shown and results["notes"][0] in shown.splitlines()


@pytest.mark.skipif(not shutil.which("git"), reason="git is not installed")
def test_results_say_of_which_commit_they_are(monkeypatch, tmp_path):
    def git(*words):
        command = ["git", "-c", "user.name=x", "-c", "user.email=x@example.org", *words]
        return subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True).stdout.strip()

    monkeypatch.setattr(origin, "__file__", str(tmp_path / "run.py"))
    git("init")
    assert origin.origin()["commit"] is None
    (tmp_path / "run.py").write_text("1")
    git("add", ".")
    git("commit", "-m", "x")
    git("tag", "-a", "v1", "-m", "x")
    assert origin.origin()["commit"] == git("rev-parse", "--short", "HEAD")
    (tmp_path / "run.py").write_text("2")
    assert origin.origin()["commit"] == git("rev-parse", "--short", "HEAD") + "+"
    monkeypatch.setenv("PATH", str(tmp_path))
    assert origin.origin()["commit"] is None


def test_a_peer_without_the_network_is_left_out(monkeypatch):
    def answers(case, line, start):
        if case["implementation"] == "torchvision":
            return sittings.Failed("torchvision has no resnet18")
        return good(case, line) | ({"parameters": 7} if case["implementation"] == "timm" else {})

    monkeypatch.setattr(sittings, "Worker", fake(answers))
    measured, notes = compare(cases(), 2, 1)
    assert [w.case["implementation"] for w, _ in measured] == ["twins", "ceiling"]
    assert notes == ["torchvision has no resnet18", "timm's resnet18 has 7 parameters, not 11,689,512: another network"]


def test_a_timer_that_does_not_wait_is_above_the_ceiling(monkeypatch, capsys):
    quick = {"times": [1e-6], "peak": 2**20}
    answers = fake(lambda case, line, start: good(case, line) | (quick if line == "turn" else {}))
    monkeypatch.setattr(sittings, "Worker", answers)
    with pytest.raises(SystemExit) as ended:
        run.main([Backend.TORCH], mode=Mode.INFER, size=32, json_file="-", device="cpu")
    assert ended.value.code == 1
    (note,) = json.loads(capsys.readouterr().out)["notes"]
    assert "of what the machine can do: the measurement is wrong" in note


def test_the_shortest_step_is_what_the_machine_must_do():
    (case, *_) = candidates.cases("lenet", Mode.TRAIN, Settings([Backend.TORCH], batch=2))
    layers = shapes.layers(case["spec"])
    macs = [layer.macs for layer in layers if layer.macs]
    flops = 2 * 2 * (3 * sum(macs) - macs[0])  # no gradient of the images
    assert summary.shortest_step(case, layers, {"flops": 1, "bytes": 1e9}) == flops
    moved = 4 * (3 * shapes.parameters(layers) + 2 * np.prod(case["spec"]["input"]))
    assert summary.shortest_step(case, layers, {"flops": 1e12, "bytes": 1}) == moved
    infer = case | {"mode": "infer", "dtype": "bfloat16"}
    assert summary.shortest_step(infer, layers, {"flops": 1, "bytes": 1e9}) == 4 * sum(macs)
    moved = 2 * (shapes.parameters(layers) + 2 * np.prod(case["spec"]["input"]))
    assert summary.shortest_step(infer, layers, {"flops": 1e12, "bytes": 1}) == moved


def scripted(function, *arguments, monkeypatch, capsys):
    """(status, stdout, stderr) of a script with such arguments, in this process."""
    monkeypatch.setattr(sys, "argv", ["script.py", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        script.start(function)
    return ended.value.code, *capsys.readouterr()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--network", "resnet19"], "no network is called 'resnet19', did you mean 'resnet18'?"),
        (["--network", "mnist_residual", "--size", "4"], "mnist_residual, images of 4x4: layer 'conv1': the image is too"),
        (["--json", "nowhere/x.json"], "nowhere/x.json: there is no folder nowhere"),
        (["--csv", ROOT / "benchmarks"], f"{ROOT / 'benchmarks'}: cannot be written"),
        (["--plot", "x.gif"], "x.gif: expected a file ending in .png, .pdf, .svg"),
        (["--dtype", "tf32", "--device", "cpu"], "--dtype tf32 is for GPUs; expected float32, bfloat16 or float16 on a CPU"),
        (["--backend", "tf", "--format", "nchw"], "--format nchw is for --backend torch"),
        (["--backend", "both", "--format", "nchw"], "--format nchw is for --backend torch"),
        (["--cuda-graphs", "--device", "cpu"], "--cuda-graphs is for --backend torch on a GPU"),
        (["--against", "keras_hub"], "--against keras_hub is for --backend tf or jax or keras-torch"),
        (
            ["--against", "torchvision,timm_"],
            "--against is 'timm_', did you mean 'timm'?; expected torchvision, timm, keras.app",
        ),
    ],
)
def test_a_mistake_is_one_line(options, message, monkeypatch, capsys):
    monkeypatch.setattr(sittings, "Worker", lambda case: pytest.fail("a worker was started"))
    status, out, err = scripted(run.main, "--backend", "torch", *options, monkeypatch=monkeypatch, capsys=capsys)
    assert (status, out) == (2, "")
    assert err.startswith(f"script.py: {message}") and err.count("\n") == 1


def test_a_mistake_in_a_process_of_its_own():
    done = benchmark("--backend", "torch", "--network", "resnet19")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("run.py: no network is called 'resnet19'") and done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("function", "options", "words"),
    [
        (run.main, ["--backend", "pytorch"], ["--backend", "torch", "tf", "jax", "keras-torch", "both"]),
        (run.main, ["--mode", "infr"], ["--mode", "infer", "train", "both"]),
        (run.main, ["--dtype", "float23"], ["--dtype", "float32", "tf32", "bfloat16", "float16"]),
        (run.main, ["--format", "nhcw"], ["--format", "nchw", "nhwc"]),
        (run.main, ["--device", "tpu"], ["--device", "cpu", "gpu"]),
        (run.main, ["--size", "0"], ["--size", "1"]),
        (run.main, ["--processes", "0"], ["--processes", "1"]),
        (kills.main, ["--backend", "troch"], ["--backend", "torch", "tf"]),
    ],
)
def test_a_value_that_an_option_does_not_take(function, options, words, monkeypatch, capsys):
    options = [*([] if "--backend" in options or function != run.main else ["--backend", "torch"]), *options]
    status, out, err = scripted(function, *options, monkeypatch=monkeypatch, capsys=capsys)
    assert (status, out) == (2, "") and all(word in err for word in words)


def test_help_names_the_values_of_options_whole(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    status, out, _ = scripted(run.main, "--help", monkeypatch=monkeypatch, capsys=capsys)
    assert status == 0 and max(map(len, out.splitlines())) <= 80
    words = out.replace(",", " ").replace(".\u0020", " ").split()
    for values in (Backend, Mode, Dtype, candidates.Format, candidates.Device, Peer):
        assert {word.rstrip(".") for word in words} >= set(values)


def test_a_run_is_killed_in_one_framework(monkeypatch, capsys):
    status, out, err = scripted(kills.main, "--backend", "both", monkeypatch=monkeypatch, capsys=capsys)
    assert (status, out, err) == (
        2,
        "",
        "script.py: --backend both: a run is killed and resumed in one framework; expected torch, tf, jax or keras-torch\n",
    )


@pytest.mark.parametrize("ignores", ["", "signal.signal(signal.SIGTERM, signal.SIG_IGN); "])
def test_children_end_with_their_block(ignores, monkeypatch):
    monkeypatch.setattr(script, "GRACE", 0.2)
    code = f"import signal, time; {ignores}print('ready', flush=True); time.sleep(60)"
    with pytest.raises(KeyError), script.Children() as children:
        process = children.start([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        assert process.stdout.readline() == "ready\n"
        raise KeyError
    with process.stdout:
        assert process.wait(10) == (-signal.SIGKILL if ignores else -signal.SIGTERM)
    with pytest.raises(shared.Error, match="interrupted"):
        children.start([sys.executable])


@pytest.mark.parametrize("call", [
    lambda folder: pictures.peak_memory("evaluate", folder, Backend.TORCH, folder),
    lambda folder: kills.main(kills=1),
])  # fmt: skip
def test_a_script_that_is_ended_ends_what_it_has_started(call, tmp_path, monkeypatch):
    started, start = [], script.Children.start

    def sleeping(self, command, **options):
        process = start(self, [sys.executable, "-c", "import time; time.sleep(60)"], **options)
        started.append(process)
        os.kill(os.getpid(), signal.SIGTERM)
        return process

    def end(number, frame):
        sys.exit(128 + number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        monkeypatch.setattr(script.Children, "start", sleeping)
        with pytest.raises(SystemExit):
            call(tmp_path)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert [process.returncode for process in started] == [-signal.SIGTERM]


@pytest.mark.parametrize("device, count", [("cpu", 2), ("meta", 1)])
def test_the_ceiling_of_a_gpu_is_a_product_of_matrices(device, count, monkeypatch):
    """A convolution is another library's on the CPU alone; "meta" stands for a GPU."""
    monkeypatch.setattr(worker, "SIDE", {device: 8})
    monkeypatch.setattr(worker, "BYTES", 64)
    side = SimpleNamespace(torch=torch, case={"device": device}, device=device, dtype=torch.float32, wait=lambda: None)
    assert len(worker.Torch.ceiling(side)[2]) == count


@pytest.mark.parametrize(
    "change, message",
    [
        ({"y_test": np.full(4, 10)}, "y_test has a label 10, expected 0 to 9, the classes of CIFAR-10"),
        ({"x_train": np.zeros((4, 8, 8), np.uint8)}, "x_train has images of 1 channels, expected 3"),
    ],
)
def test_images_that_are_not_cifar10s_are_not_written(change, message, tmp_path):
    colour = np.zeros((4, 8, 8, 3), np.uint8)
    arrays = {"x_train": colour, "y_train": np.arange(4), "x_test": colour, "y_test": np.arange(4)} | change
    if "x_train" in change:
        arrays["x_test"] = change["x_train"]
    np.savez(tmp_path / "data.npz", **arrays)
    with pytest.raises(shared.Error, match=message):
        cifar10_folder.write(tmp_path / "data.npz", tmp_path / "out", tmp_path / "same.npz", None)
    assert [path.name for path in tmp_path.iterdir()] == ["data.npz"]


def test_a_folder_of_pictures_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    colour = np.zeros((4, 8, 8, 3), np.uint8)
    np.savez(tmp_path / "data.npz", x_train=colour, y_train=np.arange(4), x_test=colour, y_test=np.arange(4))
    arguments = (tmp_path / "data.npz", tmp_path / "out", tmp_path / "same.npz", None)
    made, plain = itertools.count(), Image.fromarray

    def full(array):
        if next(made) == 5:
            raise OSError("no space left")
        return plain(array)

    monkeypatch.setattr(Image, "fromarray", full)
    with pytest.raises(shared.Error, match="out: cannot be written: no space left"):
        cifar10_folder.write(*arguments)
    assert [path.name for path in tmp_path.iterdir()] == ["data.npz"]
    assert cifar10_folder.write(*arguments) == 8 == len(list((tmp_path / "out").rglob("*.png")))


def test_half_written_files_of_a_run(tmp_path):
    (tmp_path / training.LOCK).touch()
    (tmp_path / "last.safetensors").touch()
    assert kills.temporaries(tmp_path) == kills.temporaries(tmp_path / "not there") == []
    with files.atomic_path(tmp_path / "last.safetensors") as temporary:
        temporary.touch()
        assert kills.temporaries(tmp_path) == kills.temporaries(tmp_path, os.getpid()) == [temporary.name]
        assert kills.temporaries(tmp_path, os.getpid() + 1) == []  # left by an earlier process, whose kill has been counted


def test_a_change_of_framework_that_does_not_come_out_even(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(switch, "train", lambda *arguments: pytest.fail("a run was started"))
    options = (tmp_path, "--epochs", 5, "--every", 2)
    status, out, err = scripted(switch.main, *options, monkeypatch=monkeypatch, capsys=capsys)
    assert (status, out) == (2, "") and err.startswith("script.py: expected --epochs that --every divides")


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


def pages():
    """The text of the README and of the documentation."""
    return "".join(path.read_text() for path in (ROOT / "README.md", *(ROOT / "docs").rglob("*.md")))


def test_the_ratios_in_the_documentation_are_in_the_results():
    rows = [line for line in pages().splitlines() if line.startswith("| ")]
    number = r"\d+\.\d+"
    with_bounds = rf"{number} \({number}–{number}\)"
    stated = re.findall(with_bounds, "\n".join(rows))
    files = [json.loads(path.read_text()) for path in (ROOT / "benchmarks/results").glob("*.json")]
    ratios = [ratio for results in files for row in results.get("results", []) for ratio in row["ratios"].values()]
    measured = {f"{ratio['median']:.2f} ({ratio['low']:.2f}–{ratio['high']:.2f})" for ratio in ratios}
    printed = [path.read_text() for path in (ROOT / "benchmarks/results").glob("*.txt")]
    measured.update(re.findall(with_bounds, "".join(printed)))
    assert len(stated) > 10 and set(stated) <= measured
