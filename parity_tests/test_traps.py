"""The ladder can fail: what a naive port gets wrong is put back, trap by trap, and the ladder says where it was."""

import contextlib
import functools
import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.cells import cell_len

import keras_impl
import torch_impl

import keras  # isort: skip
from keras import ops  # isort: skip
from shared import traps as texts
from shared.checks import Error
from twins import backends, ladder, traps
from twins.cli import output

PACKAGES = [torch_impl, keras_impl]
INSTALLED = Path(torch.__file__).parents[1]
LESSONS = {
    "residual_block",
    "spec",
    "degradation",
    "training_run",
    "weights",
    "dilation",
    "gridding",
    "preactivation",
}

# trap: (what turns red, and what is first beyond its tolerance). Rungs are the functions of `twins/ladder.py`.
MUTATIONS = {
    "same-padding": ("activations", "conv1"),
    "max-pool-padding": ("activations", "maxpool"),
    "ceil-mode": ("activations", "maxpool"),
    "average-pool-padding": ("activations", "avgpool"),
    "bn-epsilon": ("activations", "bn1"),
    "bn-momentum": ("statistics", "bn1.running_mean"),
    "bn-running-variance": ("statistics", "bn1.running_var"),
    "frozen-bn": ("gradients", "input"),
    "flatten-order": ("activations", "flatten"),
    "kernel-layout": ("activations", "conv1"),
    "lrn-alpha": ("activations", "lrn"),
    "grouped-convolution": ("gradients", ""),  # TensorFlow refuses
    "dilation-with-stride": ("activations", "conv1"),
    "upsample-corners": ("class maps", "upsampled"),
    "initialisers": ("initial weights", "conv1.weight"),
    "resnet-version": ("activations", "layer1"),
    "bgr-input": ("logits", "fc"),
    "resize-antialias": ("pixels", "pixels"),
    "tf32": ("float32 logits", "fc"),
    "sgd-momentum-schedule": ("weights", "conv1.weight"),
    "adam-epsilon": ("losses", "step 2"),
    "weight-decay": ("losses", "step 3"),
    "weight-decay-float32": ("losses", "step 2"),
    "learning-rate-float32": ("losses", "step 2"),
    "clip-norm": ("losses", "step 2"),
    "label-smoothing": ("gradients", "input"),
    "class-weights": ("gradients", "input"),
    "softmax-in-model": ("gradients", "input"),
    "bias-before-batch-norm": ("gradients", "conv1.bias"),
    "dropout-masks": ("gradients", "input"),
    "averaged-weights": ("weights", "ema.bn1.running_mean"),
    "half-precision-number": ("bfloat16 activations", "tanh"),
    "half-precision-sums": ("bfloat16 activations", "avgpool"),
}
ON_JAX = {  # alone
    "jax-x64": ("losses", "step 1"),
    "jax-float32-functions": ("losses", "step 1"),
    "jax-matmul-precision": ("float32 logits", "fc"),
    "jax-resize": ("class maps", "upsampled"),
    "jax-reduce-window": ("activations", "maxpool"),
    "jax-transposed-kernel": ("activations", "up"),
    "jax-running-statistics": ("statistics", "bn1.running_mean"),
    "jax-learning-rate": ("weights", "conv1.weight"),
    "jax-unused-weights": ("weights", "layer1.downsample.0.weight"),
}
UNMUTATED = {"parameter-count": "a way of counting, which no network's behaviour depends on: both counts are measured below"}


@functools.cache
def measured(trap):
    return traps.measure(PACKAGES, trap)


def test_every_trap_is_put_back_or_it_says_why_not():
    forced = {*torch_impl.naive.FORCED, *keras_impl.naive.FORCED, *traps.FORCED}
    assert forced == {*MUTATIONS}
    assert {*MUTATIONS, *ON_JAX, *UNMUTATED} == {*texts.load()} and len(texts.load()) >= 24
    assert {name for name, trap in texts.load().items() if trap.only == "jax"} == {*ON_JAX}
    assert {*traps.CASES, *traps.PROBES} <= {*texts.load()}


def sums_in_half_precision():
    """Whether TensorFlow's average pool adds up in bfloat16: the kernel that it has for AVX-512 does not."""
    ones = ops.ones((1, 32, 32, 1), "bfloat16")
    return float(ops.average_pool(ones, 32)[0, 0, 0, 0]) != 1


@pytest.mark.parametrize("trap", MUTATIONS)
def test_a_naive_port_exceeds_a_tolerance_that_this_one_keeps(trap):
    found = measured(trap)
    if trap == "half-precision-sums" and not sums_in_half_precision():
        assert found.naive == found.ours == 0
        pytest.skip("this processor's kernel adds up in float32")
    assert (found.rung, found.where) == MUTATIONS[trap]
    assert found.naive >= traps.LEAST and bool(found.failure) == (trap == "grouped-convolution")
    assert found.ours <= found.tolerance


def test_numbers_are_rounded_where_pytorch_rounds_them():
    assert measured("half-precision-number").ours == 0  # the tolerance of the ladder is far wider than the trap


@pytest.mark.long
@pytest.mark.skipif(not importlib.util.find_spec("jax"), reason="JAX is not installed: pip install jax")
def test_naive_ports_on_jax():
    """All but the traps of TensorFlow alone, by a process of its own."""
    expected = {name: place for name, place in (MUTATIONS | ON_JAX).items() if texts.find(name).only != "tf"}
    with traps.on_jax([*expected]) as received:
        found = {one.name: one for one in received}
    assert {name: (one.rung, one.where) for name, one in found.items()} == expected
    assert all(one.naive >= traps.LEAST and one.ours <= one.tolerance and not one.failure for one in found.values()), found
    assert found["half-precision-number"].ours == 0


def test_a_process_of_jax_that_fails_says_why(monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "nowhere")
    with pytest.raises(Error, match="JAX finds no device of JAX_PLATFORMS=nowhere"), traps.on_jax(["same-padding"]) as received:
        next(received)


def test_two_ways_to_count_parameters():
    found = measured("parameter-count")
    assert found.naive >= traps.LEAST and found.ours == 0


def test_nothing_stays_in_force():
    """After all of that, and after an error within."""
    with pytest.raises(KeyError), traps.put_back(PACKAGES, "flatten-order"):
        raise KeyError
    for _, differences in traps.climb(PACKAGES, traps.USUAL):
        assert ladder.largest(differences).value <= 1e-10


def keras_own(layer, x, *weights):
    """What a layer of Keras's gives for a map (batch, channels, height, width)."""
    x = x.transpose(0, 2, 3, 1)
    layer.build(x.shape)
    layer.set_weights(weights)
    return np.asarray(layer(x))


def by_naive(trap, make, x, *weights):
    """What ours gives with a trap in force."""
    with keras_impl.naive.put_back(trap):
        layer = make()
        for variable, value in zip((v for v in layer.variables), weights, strict=True):
            variable.assign(value)
        return np.asarray(layer(x.transpose(0, 2, 3, 1)))


def test_naive_layers_are_keras_own():
    generator, L, K = np.random.default_rng(0), keras_impl.layers, keras.layers  # noqa: N806
    x, kernel = generator.standard_normal((2, 4, 9, 9)).astype("float32"), generator.standard_normal((3, 3, 4, 4))
    four = [generator.uniform(0.5, 1.5, 4) for _ in range(4)]
    pairs = {
        "same-padding": (K.Conv2D(4, 3, 2, "same", use_bias=False), lambda: L.Conv(4, 4, 3, 2, 1, bias=False), [kernel]),
        "ceil-mode": (K.MaxPooling2D(3, padding="same"), lambda: L.MaxPool(3, ceil=True), []),
        "average-pool-padding": (K.AveragePooling2D(3, 1, "same"), lambda: L.AvgPool(3, 1, 1), []),
        "max-pool-padding": (
            keras.Sequential([K.ZeroPadding2D(1), K.MaxPooling2D(3, 2)]),
            lambda: L.MaxPool(3, 2, 1),
            [],
        ),
        "bn-epsilon": (K.BatchNormalization(), lambda: L.BatchNorm(4), four),
        "flatten-order": (K.Flatten(), L.Flatten, []),
    }
    for trap, (own, make, weights) in pairs.items():
        assert np.allclose(keras_own(own, x, *weights), by_naive(trap, make, x, *weights), atol=1e-6), trap


def test_naive_batch_norms_follow_as_keras_own():
    x = np.random.default_rng(0).standard_normal((2, 3, 3, 4)).astype("float32")
    own = keras.layers.BatchNormalization(momentum=0.9)
    own(x, training=True)
    with keras_impl.naive.put_back("bn-running-variance"):
        ours = keras_impl.layers.BatchNorm(4)
        ours(x, training=True)
    assert np.allclose(own.moving_variance, ours.running_var, rtol=1e-6)
    own = keras.layers.BatchNormalization(momentum=0.1)
    own(x, training=True)
    with keras_impl.naive.put_back("bn-momentum"):
        ours = keras_impl.layers.BatchNorm(4)
        ours(x, training=True)
    assert np.allclose(own.moving_mean, ours.running_mean, rtol=1e-5)


@pytest.mark.parametrize(
    "trap, own, ours",
    [
        ("sgd-momentum-schedule", keras.optimizers.SGD(0.5, 0.875), lambda: keras_impl.SGD(0.5, 0.875)),
        ("adam-epsilon", keras.optimizers.Adam(0.5), lambda: keras_impl.Adam(0.5)),
        ("weight-decay", keras.optimizers.SGD(0.5, weight_decay=0.25), lambda: keras_impl.SGD(0.5, 0.0, weight_decay=0.25)),
    ],
)
def test_naive_optimizers_are_keras_own(trap, own, ours):
    gradients = np.random.default_rng(0).standard_normal((3, 4)) * 1e-6  # where an epsilon shows
    ends = []
    with keras_impl.naive.put_back(trap):
        for optimizer in (own, ours()):
            weight = keras.Variable(np.linspace(0, 1, 4), dtype="float64")
            optimizer.build([weight])
            for gradient, rate in zip(gradients, (0.5, 0.5, 0.125), strict=True):
                optimizer.learning_rate = rate
                optimizer.apply([ops.convert_to_tensor(gradient)])
            ends.append(np.asarray(weight) - np.linspace(0, 1, 4))
    assert np.allclose(*ends, rtol=1e-9, atol=0)


def test_what_the_texts_say_of_refusals():
    with pytest.raises(ValueError, match="padding='same' is not supported for strided"):
        torch.nn.Conv2d(3, 4, 3, 2, "same")
    with pytest.raises(ValueError, match="strides > 1"):
        keras.layers.Conv2D(4, 3, 2, dilation_rate=2)


def test_dilation_with_stride_is_every_second_pixel():
    x = torch.randn(2, 3, 20, 20, dtype=torch.float64)
    both = torch.nn.Conv2d(3, 4, 3, stride=2, padding=2, dilation=2, dtype=torch.float64)
    dilated = torch_impl.layers.Conv(3, 4, 3, padding=2, dilation=2).double()
    dilated.load_state_dict(both.state_dict())
    assert torch.equal(dilated(x)[:, :, ::2, ::2].contiguous(), both(x)) or torch.allclose(dilated(x)[:, :, ::2, ::2], both(x))


def test_tf32_has_ten_bits():
    values = np.array([1.0, 1 + 2**-10, 1 + 2**-11 + 2**-20, 1 + 2**-12, -1 - 2**-10, 3.1415927], np.float32)
    expected = [1.0, 1 + 2**-10, 1 + 2**-10, 1.0, -1 - 2**-10, 3.140625]
    assert np.asarray(keras_impl.naive.tf32(values)).tolist() == expected


@pytest.mark.parametrize("trap", texts.load().values(), ids=lambda trap: trap.name)
def test_texts(trap):
    texts.place(trap.where)  # raises
    assert any(".py:" in source for source in trap.source)
    for source in trap.source:
        if ".py:" in source and (INSTALLED / source.partition("/")[0]).exists():  # JAX may be missing
            texts.place(source, INSTALLED)
    assert trap.lesson in LESSONS
    assert trap.only in ("", "tf", "jax") and trap.jax.startswith("No trap: ") == (trap.only == "tf")
    words = (trap.title, trap.pytorch, trap.keras, trap.jax, trap.naive, trap.ours)
    assert all(text and text == text.strip() for text in words)


def test_a_place_that_has_gone():
    with pytest.raises(Error, match="there is no shared/traps.py:place:no such words"):
        texts.place("shared/traps.py:place:no such words")
    with pytest.raises(Error, match="there is no shared/traps.py:gone"):
        texts.place("shared/traps.py:gone")
    file, line, code = texts.place("shared/traps.py:Trap.name")
    assert (file, code) == ("shared/traps.py", "name: str")
    assert texts.place("shared/traps.py:find:raise Error")[2].startswith("raise Error(")


def fake(name):
    """A measurement that takes no time, of the widest cells that there are."""
    rung, where = ("bfloat16 activations", "avgpool") if name == "half-precision-sums" else ("weights", "ema.bn1.running_mean")
    return traps.Measurement(name, rung, where, 1, 1e-14, 1e-12)


@pytest.fixture
def instant(monkeypatch):
    """Measurements that take no time, and a terminal of 80 columns; yields what was asked of JAX."""
    asked = []

    @contextlib.contextmanager
    def on_jax(names):
        asked.extend(names)
        yield map(fake, names)

    monkeypatch.setattr(output, "width", lambda: 80)
    monkeypatch.setattr(backends, "start", lambda backend: [])
    monkeypatch.setattr(traps, "measure", lambda _, trap: fake(trap))
    monkeypatch.setattr(traps, "on_jax", on_jax)
    return asked


def test_jax_leaves_some_of_a_gpu_to_tensorflow(monkeypatch):
    class Process:
        def __init__(self, title, starter, environment):
            assert environment["XLA_PYTHON_CLIENT_PREALLOCATE"] == "false"

        def kill(self):
            pass

    monkeypatch.setattr(traps.remote, "Process", Process)
    monkeypatch.setattr(backends, "check_installed", lambda *packages: None)
    with traps.on_jax([]) as measured:
        assert list(measured) == []


def test_memory_that_has_run_out_is_no_trap(monkeypatch):
    def climb(packages, case, trap=None):
        if trap:
            raise RuntimeError("RESOURCE_EXHAUSTED: out of memory")
        yield "activations", [ladder.Difference("conv1", (), 0.0)]

    monkeypatch.setattr(traps, "climb", climb)
    with pytest.raises(RuntimeError, match="out of memory"):
        traps.measure(PACKAGES, "same-padding")


def test_every_screen_fits_a_terminal(twins, instant):
    for trap in texts.load():
        done = twins("traps", trap)
        lines = done.stdout.splitlines()
        assert done.returncode == 0 and len(lines) <= 25 and max(map(cell_len, lines)) <= 80, done.stdout
    table = twins("traps").stdout.splitlines()
    assert max(map(cell_len, table)) <= 80 and len(table) == len(texts.load()) + 4 and "…" not in "".join(table)


def test_backends_have_a_column_each(twins, instant):
    lines = twins("traps").stdout.splitlines()
    assert lines[0].split()[-3:] == ["TensorFlow", "JAX", "ours"]
    rows = {line.split()[0]: line.split()[-3:] for line in lines[1:] if line}
    assert rows["same-padding"] == ["1.0e+00", "1.0e+00", "1.0e-14"]
    assert rows["lrn-alpha"] == ["1.0e+00", "–", "1.0e-14"] and rows["jax-x64"] == ["–", "1.0e+00", "1.0e-14"]
    text = " ".join(twins("traps bn-momentum").stdout.split())
    assert "JAX: 1.0e+00 from PyTorch (weights, first at ema.bn1.running_mean)" in text and "TensorFlow: 1.0e+00" in text
    assert "Flax's is the share of the old statistics too." in text


def test_what_a_trap_is_not_measured_on_is_not_started(twins, instant, monkeypatch):
    row = json.loads(twins("traps bn-epsilon --json --backend tf").stdout)
    assert instant == [] and row["measured"]["jax"] is None and row["measured"]["tf"]["naive"] == 1
    assert json.loads(twins("traps lrn-alpha --json").stdout)["measured"]["jax"] is None and instant == []
    monkeypatch.setattr(backends, "start", lambda backend: pytest.fail(f"{backend} was started"))
    row = json.loads(twins("traps jax-x64 --json").stdout)
    assert instant == ["jax-x64"] and row["measured"]["tf"] is None and row["measured"]["jax"]["ours"] == 1e-14
    assert twins("traps bn-epsilon --backend jax").returncode == 0 and instant == ["jax-x64", "bn-epsilon"]
    done = twins("traps --backend torch")
    assert done.returncode == 2 and "the traps are measured on TensorFlow and on JAX; expected tf or jax" in done.stderr


def test_command(twins):
    done = twins("traps same-padding --backend tf")
    text = " ".join(done.stdout.split())
    assert done.returncode == 0 and done.stdout.startswith("Padding of a strided convolution\n")
    assert "(activations, first at conv1)" in text and "keras_impl/layers.py, line " in text
    assert "x = pad(x, self.pixels)" in text and "docs/lessons/residual_block.md" in text
    row = json.loads(twins("traps bn-epsilon --json --backend tf").stdout)
    assert (
        row["measured"]["tf"]["where"] == "bn1"
        and row["code"].startswith("def __init__(")
        and row["lesson"] == "residual_block"
    )


def test_command_with_a_typo(twins):
    done = twins("traps same-pading")
    assert done.returncode == 2
    assert done.stderr == "twins: no trap is called 'same-pading', did you mean 'same-padding'?\n"


def test_command_without_a_framework(twins, instant, monkeypatch):
    def fail(*_):
        raise Error("PyTorch is not installed")

    monkeypatch.setattr(backends, "start", fail)
    monkeypatch.setattr(traps, "on_jax", fail)
    done = twins("traps tf32")
    missing = "not measured on JAX: PyTorch is not installed\nnot measured on TensorFlow: PyTorch is not installed\n"
    assert (done.returncode, done.stderr) == (0, missing) and "TensorFlow" in done.stdout
    rows = json.loads(twins("traps --json").stdout)
    assert len(rows) == len(texts.load()) and rows[0]["measured"] == {"tf": None, "jax": None}
    assert "same-padding" in twins("traps").stdout


def test_without_jax_the_rest_is_measured(twins, monkeypatch):
    monkeypatch.setattr(backends, "start", lambda backend: [])
    monkeypatch.setattr(traps, "measure", lambda _, trap: fake(trap))
    find = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "jax" else find(name))
    done = twins("traps tf32")
    assert done.stderr == "not measured on JAX: JAX is not installed: pip install 'resnet-twins[jax]'\n"
    assert done.returncode == 0 and "TensorFlow: 1.0e+00 from PyTorch" in done.stdout


def test_status_if_a_tolerance_is_exceeded(twins, instant, monkeypatch):
    monkeypatch.setattr(traps, "measure", lambda _, trap: traps.Measurement(trap, "activations", "conv1", 1, np.nan, 1e-12))
    assert twins("traps tf32").returncode == 1
    assert twins("traps tf32 --backend jax").returncode == 0
