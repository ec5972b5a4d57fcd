"""`--backend all`: three frameworks side by side. The third here is Keras again, a little off; `test_jax.py` has JAX itself."""

import json
import os
import sys
import types

import numpy as np
import pytest
from PIL import Image

import torch_impl

# isort: split
import keras_impl
import shared
from shared import networks, weights
from twins import backends, ladder
from twins.backends import Backend
from twins.cli import output

OFF = 1 + 1e-7  # what the third engine's outputs are multiplied by
WORDS = "--weights w.safetensors --backend all"


class Third(keras_impl.Engine):
    framework = "JAX"

    def predict(self, images):
        return super().predict(images) * OFF

    def class_maps(self, images):
        return super().class_maps(images) * OFF

    def activations(self, images):
        return {name: array * OFF for name, array in super().activations(images).items()}

    def step(self, *arguments):
        loss, correct = super().step(*arguments)
        return loss * OFF, correct


@pytest.fixture
def files(tmp_path, monkeypatch):
    """A folder with networks, weights and pictures, which is the working directory; the third package is `Third`'s."""
    package = types.SimpleNamespace(build=keras_impl.build, load=keras_impl.load, state=keras_impl.state, Engine=Third)
    monkeypatch.setattr(backends, "_jax_apart", lambda: package)
    monkeypatch.setattr(backends, "_missing", lambda packages: [])  # JAX need not be there
    spec = shared.load("resnet20") | {"name": "small", "input": [3, 16, 16]}
    dense = networks.segmentation(spec, 5)
    for name, each in (("small", spec), ("dense", dense)):
        (tmp_path / f"{name}.json").write_text(json.dumps(each))
    weights.save_state(tmp_path / "w.safetensors", weights.initial(spec))
    weights.save_state(tmp_path / "dense.safetensors", weights.initial(dense))
    pixels = np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), np.uint8)
    for number, each in enumerate(pixels[:2]):
        Image.fromarray(each).save(tmp_path / f"{number}.png")
    arrays = {"x_train": pixels, "y_train": np.arange(4), "x_test": pixels, "y_test": np.arange(4)}
    np.savez(tmp_path / "mine.npz", **arrays)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def lines(out):
    return [" ".join(line.split()) for line in out.splitlines()]


def test_the_engines_have_the_names_that_people_see():
    assert backends.TITLES[Backend.TORCH] == torch_impl.Engine.framework
    assert backends.TITLES[Backend.TF] == keras_impl.Engine.framework
    assert backends.frameworks(Backend.ALL) == ["PyTorch", "Keras", "JAX"]
    assert backends.frameworks(Backend.JAX) == ["JAX"] and backends.frameworks(Backend.BOTH) == ["PyTorch", "Keras"]


def test_compare(twins, files, monkeypatch):
    monkeypatch.setattr(output, "width", lambda: 80)
    status, out, error = twins("compare mnist_residual --steps 2 --backend all --plot all.png")
    found = lines(out)
    assert status == 1 and error == "" and (files / "all.png").exists()
    assert "layer PyTorch Keras JAX largest difference" in found
    assert "step PyTorch Keras JAX difference one rounding apart" in found
    assert "conv1 16x24x24 24x24x16 24x24x16 1.0e-07" in found
    assert next(line for line in found if line.startswith("losses of 2 steps")) == "losses of 2 steps 1.0e-07 in JAX 1e-10"
    whole = " ".join(found)
    assert "Tolerance exceeded: activations: conv1 is the first to diverge, by 1.0e-07 in JAX; the tolerance is 1e-12" in whole
    assert "Tolerance exceeded: losses: step 1 is the first to diverge, by 1.0e-07 in JAX; the tolerance is 1e-10" in whole
    assert "…" not in out.partition("Overall")[0]  # nothing is cut


def test_compare_as_json(twins, files):
    status, out, error = twins("compare mnist_residual --steps 1 --backend all --json")
    found = json.loads(out)
    assert (status, error) == (1, "") and found["frameworks"] == ["PyTorch", "Keras", "JAX"]
    assert len(found["parameters"]) == 4 and len(set(found["parameters"])) == 1 and len(found["accuracy"]) == 3
    assert found["largest_activations"]["farthest"] == "JAX" and len(found["activations"][0]["shapes"]) == 3
    (step,) = found["steps"]
    assert step["farthest"] == "JAX" and step["losses"][2] == pytest.approx(step["losses"][0] * OFF, rel=1e-12)


def test_predict(twins, files):
    status, out, error = twins(f"predict small.json 0.png 1.png {WORDS}")
    found = lines(out)
    assert (status, error) == (0, "") and "class label PyTorch Keras JAX" in found
    assert any(line.startswith("The same top classes in all 3; logits at most ") for line in found)
    assert found[-1].startswith("2 pictures: the same top classes for 2, logits at most ")
    status, out, error = twins(f"predict small.json --data mine.npz {WORDS} --json")
    found = json.loads(out)
    assert found["same_predictions"] == 4 and [*found["top1"]] == ["PyTorch", "Keras", "JAX"]


def test_one_that_differs_is_enough(twins, files, monkeypatch):
    monkeypatch.setattr(Third, "predict", lambda self, images: -keras_impl.Engine.predict(self, images))
    monkeypatch.setattr(Third, "class_maps", lambda self, images: -keras_impl.Engine.class_maps(self, images))
    found = json.loads(twins(f"predict small.json 0.png {WORDS} --json").stdout)["images"][0]
    assert not found["same_top"] and found["difference"] == pytest.approx(2, rel=1e-4)
    assert json.loads(twins(f"predict small.json --data mine.npz {WORDS} --json").stdout)["same_predictions"] == 0
    found = json.loads(twins(f"locate small.json 0.png {WORDS}").stdout)
    assert not found["same_box"] and found["difference"] == pytest.approx(2, rel=1e-4)
    words = "--weights dense.safetensors --backend all --out seg --json"
    assert json.loads(twins(f"segment dense.json 0.png {words}").stdout)["images"][0]["same"] < 0.5


def test_evaluate(twins, files):
    status, out, error = twins(f"evaluate small.json --data mine.npz {WORDS}")
    assert (status, error) == (0, "") and lines(out)[1] == "PyTorch Keras JAX"
    assert "The same prediction for all of them." in out


def test_locate(twins, files):
    (files / "boxes.json").write_text(json.dumps([{"file": f"{n}.png", "boxes": [[0, 0, 9, 9]], "class": 1} for n in range(2)]))
    status, out, error = twins(f"locate small.json --data . {WORDS}")
    assert (status, error) == (0, "") and "2 pictures, PyTorch, Keras and JAX" in out
    assert "The same class, box and peak in all 3 for all of them." in out


def test_segment(twins, files):
    words = "--weights dense.safetensors --backend all --out seg"
    status, out, error = twins(f"segment dense.json 0.png {words} --json")
    found = json.loads(out)
    assert (status, error) == (0, "") and found["frameworks"] == ["PyTorch", "Keras", "JAX"]
    assert found["images"][0]["same"] == 1


@pytest.mark.parametrize(
    "command", ["train", "activations lenet5 0.png --layer conv1 --out x.png", "microscope lenet5 --out x"]
)
def test_where_one_runs_it_is_refused(command, twins, files):
    done = twins(f"{command} --backend all")
    assert done.returncode == 2 and "; expected torch, tf, jax or keras-torch\n" in done.stderr and done.stderr.count("\n") == 1


def test_a_backend_of_keras_in_the_environment_is_overridden_with_a_note(twins, files, monkeypatch):
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    for backend, note in (("tf", "tensorflow"), ("both", "tensorflow"), ("torch", ""), ("all", "")):
        monkeypatch.setenv("KERAS_BACKEND", "jax")
        done = twins(f"predict small.json 0.png --weights w.safetensors --backend {backend}")
        expected = f"KERAS_BACKEND is 'jax', but --backend {backend} takes precedence: Keras runs on {note}.\n" if note else ""
        assert (done.returncode, done.stderr) == (0, expected)


def test_keras_is_started_without_a_trace_in_the_environment(monkeypatch):
    for before in (None, "torch"):
        monkeypatch.setenv("KERAS_BACKEND", before) if before else monkeypatch.delenv("KERAS_BACKEND", raising=False)
        backends.keras()
        assert os.environ.get("KERAS_BACKEND") == before


def test_the_farthest_of_several_counts():
    assert ladder.farthest([1.0], [[1.0], [1.5], [1.25]]) == (0.5, 2)
    assert ladder.farthest([1.0], [[1.5], [np.nan]])[1] == 2 and ladder.farthest([1.0], [None, [9.0]]) == (np.inf, 1)
    states = [{"a": np.ones(2)}, {"a": np.ones(2)}, {"a": np.ones(2), "b": np.ones(3)}]
    found = ladder.between(*states)
    assert found[0].value == 0 and found[1] == ("b", ((), (), (3,)), np.inf, 1)


def test_frameworks_beside_each_other_compute_float32_in_full_and_share_a_gpu(monkeypatch):
    """And one that trains does by default what it does."""
    import tensorflow
    import torch

    tf32 = tensorflow.config.experimental
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    monkeypatch.setenv("TF_FORCE_GPU_ALLOW_GROWTH", "")
    monkeypatch.delenv("TF_FORCE_GPU_ALLOW_GROWTH")
    tf32.enable_tensor_float_32_execution(True)
    for backend in (Backend.TORCH, Backend.TF):
        backends.start(backend, tf32=True)
    assert torch.backends.cudnn.allow_tf32 and tf32.tensor_float_32_execution_enabled()
    assert "TF_FORCE_GPU_ALLOW_GROWTH" not in os.environ
    backends.start(Backend.BOTH)
    assert not torch.backends.cudnn.allow_tf32 and not tf32.tensor_float_32_execution_enabled()
    assert os.environ["TF_FORCE_GPU_ALLOW_GROWTH"] == "true"
    changed = []
    jax = types.SimpleNamespace(config=types.SimpleNamespace(update=lambda *change: changed.append(change)))
    monkeypatch.setitem(sys.modules, "jax", jax)
    monkeypatch.setattr(backends, "_missing", lambda packages: [])  # JAX need not be there
    monkeypatch.setattr(backends, "keras", lambda backend: keras_impl)
    backends.start(Backend.JAX, tf32=True)
    assert changed == []
    backends.start(Backend.JAX)
    assert changed == [("jax_default_matmul_precision", "float32")]


def test_pytorch_predicts_on_the_gpu_if_it_is_told_to(monkeypatch):
    """The device stands for a GPU."""
    import torch

    monkeypatch.setattr(torch_impl, "device", lambda: torch.device("meta"))
    spec = shared.load("lenet")
    packages, state = [torch_impl, keras_impl], weights.initial(spec)
    for on_gpu in (False, True):
        engine, _ = backends.engines(packages, spec, state, on_gpu=on_gpu)
        assert {weight.is_meta for weight in engine.net.parameters()} == {on_gpu}
    monkeypatch.undo()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert torch_impl.device() == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert torch_impl.device() == torch.device("cuda", 0)


@pytest.mark.parametrize(
    "words",
    [
        "predict small 0.png",
        "evaluate small --data mine.npz",
        "locate small 0.png --out boxes",
        "segment dense 0.png --out maps",
        "activations small 0.png --layer layer1 --out o.png",
    ],
)
def test_these_commands_predict_on_the_gpu(words, files, twins, monkeypatch):
    def engines(*arguments, **options):
        raise shared.Error(f"{options}")

    monkeypatch.setattr(backends, "engines", engines)
    command, network, *rest = words.split()
    file = "dense.safetensors" if network == "dense" else "w.safetensors"
    done = twins(command, f"{network}.json", *rest, "--weights", file)
    assert done == (2, "", "twins: {'on_gpu': True}\n")
