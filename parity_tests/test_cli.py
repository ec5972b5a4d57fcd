"""The command `twins` as a user has it: what it prints, how it exits, what it says to a mistake."""

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import shared
from shared import weights


def command(*arguments):
    """As a user starts it."""
    return subprocess.run([sys.executable, "-m", "twins", *arguments], capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def compared(twins, tmp_path_factory):
    plot = tmp_path_factory.mktemp("plot") / "curves.png"
    return twins("compare", "mnist_residual", "--json", "--plot", plot), plot


def test_list():
    done = command("list")
    assert done.returncode == 0 and done.stderr == ""
    for name in shared.names():
        assert name in done.stdout
    rows = json.loads(command("list", "--json").stdout)
    assert {row["name"]: row["parameters"] for row in rows}["resnet50"] == 25_557_032


def test_list_takes_a_pattern(twins):
    def listed(*words):
        return [row["name"] for row in json.loads(twins("list", *words, "--json").stdout)]

    assert listed("DRN_C") == ["drn_c_18_small", "drn_c_26", "drn_c_26_seg", "drn_c_42", "drn_c_58"]  # a part of the names
    assert listed("resnet5?") == ["resnet50", "resnet56"] and listed("resnet50") == [
        "preact_resnet50", "resnet50", "resnet50_keras", "resnet50_v1", "wide_resnet50_2",
    ]  # fmt: skip
    assert "drn_d_22" in twins("list", "drn_d*").stdout and "lenet" not in twins("list", "drn_d*").stdout
    for pattern, rest in (("resnt18", ", did you mean 'resnet18'?"), ("*bert*", "; `twins list` lists them all")):
        done = twins("list", pattern)
        assert done == (2, "", f"twins: no network's name matches '{pattern}'{rest}\n")


def test_show(twins):
    done = twins("show", "drn_a_18")
    assert done.returncode == 0
    line = next(line.split() for line in done.stdout.splitlines() if line.startswith("layer3.0"))
    assert line == ["layer3.0", "basic", "256x28x28", "919,040", "719", "M", "147", "8", "1,", "2"]
    layers = json.loads(twins("show", "resnet18", "--size", "64", "--json").stdout)["layers"]
    assert layers[3] == {
        "name": "maxpool", "type": "max_pool", "shape": [64, 16, 16], "parameters": 0, "macs": 0, "field": 11, "stride": 4,
        "dilations": [],
    }  # fmt: skip
    assert layers[-1]["field"] is None  # everything


def test_compare_agrees_to_12_digits(compared):
    done, _ = compared
    assert done.returncode == 0 and done.stderr == ""
    report = json.loads(done.stdout)
    assert report["passed"] and report["broken"] == [] and report["first_diverging_layer"] is None
    assert len(report["steps"]) == report["judged_steps"] == 20
    assert max(step["difference"] for step in report["steps"]) < 1e-12
    assert report["parameters"] == [41_514] * 3
    assert report["accuracy"][0] == report["accuracy"][1] > 0.7 and report["same_predictions"]
    assert report["largest_activations"]["value"] <= 1e-12 and report["largest_gradients"]["value"] <= 1e-9


def test_compare_draws_the_curves(compared):
    with Image.open(compared[1]) as plot:
        assert plot.format == "PNG" and min(plot.size) > 500


def test_compare_prints_tables(twins):
    done = twins("compare", "mnist_residual", "--steps", "1", "--dtype", "float32")
    assert done.returncode == 0 and done.stderr == ""
    assert "block1   16x12x12  12x12x16" in done.stdout
    assert "All parity tolerances are met." in done.stdout


def test_compare_a_network_from_outside(twins, tmp_path):
    # Words that are not among the project's networks: an odd kernel, "same" padding with stride, dilation, a map of 5 classes.
    spec = {
        "name": "mine",
        "input": [1, 20, 24],
        "layers": [
            {"name": "stem", "type": "conv", "in": 1, "out": 8, "kernel": 4, "stride": 2, "padding": "same"},
            {"name": "pool", "type": "max_pool", "kernel": 3, "stride": 2, "padding": 1},
            {"name": "body", "type": "bottleneck", "in": 8, "out": 16, "repeat": 2, "dilation": 2, "eps": 0.01},
            {"name": "mean", "type": "global_avg_pool"},
            {"name": "flat", "type": "flatten"},
            {"name": "classes", "type": "linear", "in": 16, "out": 5},
        ],
    }
    (tmp_path / "mine.json").write_text(json.dumps(spec))
    done = twins("compare", "./mine.json", "--steps", "3", "--json", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert [layer["name"] for layer in json.loads(done.stdout)["activations"]] == [
        "stem", "pool", "body.0", "body.1", "mean", "flat", "classes",
    ]  # fmt: skip


def test_compare_with_weights_and_a_picture(twins, tmp_path):
    weights.save_state(tmp_path / "w.safetensors", weights.randomised(weights.initial("resnet20", seed=4)))
    Image.fromarray(np.arange(40 * 50 * 3, dtype=np.uint8).reshape(40, 50, 3)).save(tmp_path / "p.png")
    options = ["--weights", tmp_path / "w.safetensors", "--image", tmp_path / "p.png", "--steps", "0", "--json"]
    done = twins("compare", "resnet20", *options)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["steps"] == [] and report["largest_activations"]["value"] <= 1e-12


MISTAKES = {
    "unknown network": (["show", "resnet19"], "no network is called 'resnet19', did you mean"),
    "no such spec": (["compare", "mine.json"], "mine.json: there is no such file"),
    "image too small": (["show", "mnist_residual", "--size", "4"], "layer 'conv1': the image is too small"),
    "image of another size than the network's": (["show", "mnist_residual", "--size", "40"], "flatten gives 1568"),
    "no such weights": (["compare", "resnet20", "--weights", "w.safetensors"], "w.safetensors: there is no such file"),
    "weights of another network": (
        ["compare", "resnet20", "--weights", "other.safetensors"],
        "other.safetensors: the weights do not fit the network:\n  missing: bn1.weight 16",
    ),
    "no such picture": (["compare", "resnet20", "--image", "p.png"], "p.png: there is no such file"),
    "no picture": (["compare", "resnet20", "--image", "text.txt"], "text.txt: not an image"),
    "unknown data": (["compare", "resnet20", "--data", "digit"], "no data set is called 'digit', did you mean 'digits'"),
    "learning rate": (["compare", "resnet20", "--learning-rate", "-1"], "expected a number above 0"),
    "plot into no folder": (["compare", "resnet20", "--plot", "nowhere/p.png"], "there is no folder nowhere"),
    "plot of nothing": (["compare", "resnet20", "--plot", "p.png", "--steps", "0"], "--steps 0 leaves out"),
    "plot of no kind": (["compare", "resnet20", "--plot", "p.doc"], "expected a file ending in .png"),
    "broken JSON": (["show", "broken.json"], "broken.json: line 1, column 2: not JSON"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_gets_one_message(mistake, twins, tmp_path):
    (tmp_path / "broken.json").write_text("{")
    (tmp_path / "text.txt").write_text("no picture")
    weights.save_state(tmp_path / "other.safetensors", weights.initial("mnist_residual"))
    before = sorted(tmp_path.iterdir())
    arguments, words = MISTAKES[mistake]
    done = twins(*arguments, folder=tmp_path)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("twins: ") and words in done.stderr and "Traceback" not in done.stderr
    assert sorted(tmp_path.iterdir()) == before


def test_a_typo_in_the_command_or_an_option():
    for arguments in (["sho", "resnet18"], ["show", "resnet18", "--sise", "3"], ["compare", "resnet18", "--steps", "-1"]):
        done = command(*arguments)
        assert done.returncode == 2 and "Traceback" not in done.stderr


def test_without_arguments_it_lists_the_commands():
    done = command()
    assert done.returncode == 2
    assert all(name in done.stdout + done.stderr for name in ("list", "show", "compare"))


def test_text_of_a_spec_is_no_markup(twins, tmp_path):
    layers = [{"name": "flat", "type": "flatten"}]
    spec = {"name": "mine", "title": "Net [/v2] [red]x", "input": [1, 2, 2], "layers": layers}
    (tmp_path / "mine.json").write_text(json.dumps(spec))
    assert "Net [/v2] [red]x" in twins("show", tmp_path / "mine.json").stdout


def test_a_path_is_no_markup(twins, tmp_path):
    done = twins("convert", "a[/b].pth", "b.safetensors", folder=tmp_path)
    assert (done.returncode, done.stderr) == (2, "twins: a[/b].pth: there is no such file\n")


def test_an_exit_status_of_1_names_the_tolerance(twins):
    done = twins("compare", "mnist_residual", "--steps", "4", "--learning-rate", "1e8")
    assert done.returncode == 1
    assert "Tolerance exceeded: losses: the loss is NaN or infinite at step 3" in done.stdout


@pytest.mark.parametrize(
    "arguments, choices",
    [
        (["predict", "lenet", "--backend", "troch"], ["torch", "tf", "jax", "keras-torch", "both"]),
        (["train", "--backend", "both2"], ["torch", "tf", "jax", "keras-torch", "both"]),
        (["compare", "lenet", "--dtype", "float46"], ["float64", "float32", "bfloat16"]),
        (["schema", "specs"], ["spec", "recipe"]),
    ],
)
def test_a_choice_that_is_none_gets_the_choices(arguments, choices, twins):
    done = twins(*arguments)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert all(f"'{choice}'" in done.stderr for choice in choices)


REFUSED = {
    "predict": (["lenet"], set()),
    "locate": (["resnet20"], set()),
    "activations": (["resnet20", "p.png", "--layer", "layer1", "--out", "o.png"], {"both", "all"}),
    "train": ([], {"both", "all"}),
}


@pytest.mark.parametrize("command", REFUSED)
@pytest.mark.parametrize("backend", ["torch", "tf", "jax", "keras-torch", "both", "all"])
def test_a_backend_means_the_same_everywhere_or_is_refused_with_the_reason(command, backend, twins, monkeypatch, tmp_path):
    arguments, refused = REFUSED[command]

    def started(asked, **options):
        raise shared.Error(f"started {asked}" + " with TF32" * options.get("tf32", False))

    monkeypatch.setattr("twins.backends.start", started)
    Image.new("RGB", (32, 32)).save(tmp_path / "p.png")
    picture = ["p.png"] if command in ("predict", "locate") else []
    weights.save_state(tmp_path / "w.safetensors", weights.initial("resnet20" if command == "locate" else "lenet"))
    given = ["--weights", "w.safetensors"] if picture else []
    Image.new("L", (28, 28)).save(tmp_path / "p.png") if command == "predict" else None
    done = twins(command, *arguments, *picture, *given, "--backend", backend, folder=tmp_path)
    expected = f"--backend {backend}: " if backend in refused else f"started {backend}{' with TF32' * (command == 'train')}\n"
    assert done.returncode == 2 and expected in done.stderr
    assert ("; expected torch" in done.stderr) == (backend in refused)


def failure(name, message):
    """An exception of a framework's, by its name alone."""
    return type(name, (RuntimeError,), {})(message)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("Unable to allocate 7.45 GiB"),
        failure("OutOfMemoryError", "CUDA out of memory. Tried to allocate 20.00 MiB.\nGPU 0 has"),
        failure("RuntimeError", "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory"),
        failure("ResourceExhaustedError", "{{function_node __wrapped__}} OOM when allocating tensor with shape[9]"),
        failure("JaxRuntimeError", "RESOURCE_EXHAUSTED: Out of memory allocating 8589934592 bytes."),
    ],
    ids=lambda error: type(error).__name__,
)
def test_memory_that_has_run_out_is_one_message(error, twins, monkeypatch):
    monkeypatch.setattr("shared.networks.load", lambda name: raise_(error))
    assert twins("show lenet") == (1, "", "twins: out of memory; try a smaller batch or image size\n")


def test_what_is_no_lack_of_memory_stays_what_it_is(twins, monkeypatch):
    monkeypatch.setattr("shared.networks.load", lambda name: raise_(failure("RuntimeError", "shapes do not fit")))
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        twins("show lenet")
    monkeypatch.undo()
    done = twins("show out_of_memory.json")
    assert done == (2, "", "twins: out_of_memory.json: there is no such file\n")


def raise_(error):
    raise error


def test_version(twins):
    root = Path(__file__).parent.parent
    version = tomllib.loads((root / "pyproject.toml").read_text())["project"]["version"]
    assert twins("--version").stdout == f"twins {version}\n"
    assert f"\nversion: {version}\n" in (root / "CITATION.cff").read_text()


def test_completion_knows_the_choices():
    words = {"_TWINS_COMPLETE": "complete_bash", "COMP_WORDS": "twins predict --backend ", "COMP_CWORD": "3"}
    command = Path(sys.executable).with_name("twins")
    done = subprocess.run([command], capture_output=True, text=True, env=os.environ | words, timeout=60)
    assert done.stdout.split() == ["torch", "tf", "jax", "keras-torch", "both", "all"]


def test_curves_without_a_common_epoch_have_no_difference(tmp_path, twins):
    row = {"loss": 1.0, "test_loss": 2.0, "test_accuracy": 0.5, "framework": "PyTorch"}
    runs = {"early": [1, 2], "late": [3], "both": [2, 3]}
    for name, epochs in runs.items():
        rows = [row | {"epoch": epoch, "loss": 1.0 + 0.5 * (name == "both")} for epoch in epochs]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    status, out, error = twins("curves", *(f"{name}.jsonl" for name in runs), "--out", "c.png", folder=tmp_path)
    assert (status, error) == (0, "")
    assert [line.split() for line in out.splitlines()[1:4]] == [
        ["early.jsonl", "2", "50.00%", "1"],
        ["late.jsonl", "1", "50.00%", "3"],
        ["both.jsonl", "2", "50.00%", "2", "5.0e-01"],
    ]
    rows = json.loads(twins("curves", *(f"{name}.jsonl" for name in runs), "--out", "c.png", "--json", folder=tmp_path).stdout)
    assert [(row["run"], row["epochs"], row["difference"]) for row in rows] == [
        ("early.jsonl", 2, None), ("late.jsonl", 1, None), ("both.jsonl", 2, 0.5),
    ]  # fmt: skip
    assert (rows[1]["best_epoch"], rows[1]["test_accuracy"]) == (3, 0.5)


def test_curves_of_pixels_have_the_miou(tmp_path, twins):
    row = {"epoch": 1, "loss": 1.0, "test_loss": 2.0, "test_accuracy": 0.9, "framework": "PyTorch"}
    for name, more in (("pixels", {"test_miou": 0.25}), ("images", {})):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(row | more) + "\n")
    _, alone, _ = twins("curves", "pixels.jsonl", "--out", "c.png", folder=tmp_path)
    assert "best test mIoU" in alone and "25.00%" in alone
    _, mixed, _ = twins("curves", "pixels.jsonl", "images.jsonl", "--out", "c.png", folder=tmp_path)
    assert "best test accuracy" in mixed and mixed.count("90.00%") == 2
