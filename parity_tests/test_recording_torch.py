"""What PyTorch modules of any style run, in common terms: each operation alone gives what it gave in the network."""

import threading
import zipfile

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import torch_impl
from shared.checks import Error
from torch_impl import recording

TOLERANCE = 1e-12  # rung 2, float64


class Everything(nn.Module):
    """Modules, functions, operators in place, one module twice, constants and a kernel that is made of a weight."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, stride=2, padding="valid", bias=False)
        self.same = nn.Conv2d(8, 8, (4, 3), padding="same", dilation=2, groups=2)
        self.up = nn.ConvTranspose2d(8, 6, 3, stride=2, padding=1, output_padding=1)
        self.norm = nn.BatchNorm2d(8, eps=1e-3, momentum=0.2)
        self.groups = nn.GroupNorm(2, 6)
        self.response = nn.LocalResponseNorm(5, alpha=0.3, k=2.0)
        self.act = nn.GELU(approximate="tanh")
        self.drop = nn.Dropout(0.3)
        self.fc = nn.Linear(6, 4)
        self.register_buffer("shift", torch.rand(6, 1, 1))

    def forward(self, x):
        x = self.act(self.norm(self.conv(2 - x)))
        kernel = self.same.weight - self.same.weight.mean((1, 2, 3), keepdim=True)
        y = self.same(x) + F.conv2d(x, kernel, padding="same", groups=2)
        F.relu(y, inplace=True)
        y = y + x
        y += 1
        y = F.leaky_relu(self.groups(self.up(self.act(y))) * self.shift, 0.1)
        first, second = self.response(y).chunk(2, 1)
        y = torch.cat([second, first], dim=1)
        y = F.max_pool2d(y, 3, 2, ceil_mode=True) + F.avg_pool2d(y, 3, 2, ceil_mode=True, count_include_pad=False)
        y = F.interpolate(F.pad(y, (1, 2, 0, 1), mode="reflect"), scale_factor=2, mode="bilinear")
        y = self.drop(y.permute(0, 2, 3, 1).flatten(1, 2)).mean(1)
        return {"logits": self.fc(y), "normed": F.normalize(y, dim=1)}


def replayed(module, inputs, training=False):
    """The recording, when each operation has been run alone on what it read."""
    before = {name: value.clone() for name, value in module.state_dict().items()}
    found = recording.record(module, inputs, training)
    values = found.values(inputs)
    for each in found.operations:
        if each.kind == "dropout" and each.attributes["training"]:
            continue
        result = found.apply(each.name, [values[name] for name in each.inputs], weights_of(found, each))
        assert result.shape == each.shape == values[each.name].shape
        np.testing.assert_allclose(result, values[each.name], rtol=TOLERANCE, atol=TOLERANCE, err_msg=each.name)
    assert len({each.name for each in found.operations}) == len(found.operations)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    return found


def weights_of(found, operation):
    return {role: found.weight(operation.name, role) for role in operation.weights}


@pytest.fixture(scope="module")
def everything():
    torch.manual_seed(0)
    module, inputs = Everything().eval(), [np.random.default_rng(0).standard_normal((2, 3, 17, 15))]
    return module, inputs, replayed(module, inputs)


def test_the_whole_is_the_module(everything):
    module, inputs, found = everything
    with torch.no_grad():
        expected = module.double()(torch.tensor(inputs[0]))
    values = found.values(inputs)
    assert found.inputs == ["x"] and len(found.outputs) == 2
    for name, tensor in zip(found.outputs, expected.values(), strict=True):
        np.testing.assert_allclose(values[name], tensor.numpy(), rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.parametrize(
    "name, kind, expected",
    [
        ("rsub", "subtract", {}),
        ("conv", "convolution", {"stride": (2, 2), "padding": ((0, 0), (0, 0)), "channels": 1}),
        ("same", "convolution", {"padding": ((3, 3), (2, 2)), "dilation": (2, 2), "groups": 2, "transposed": False}),
        ("up", "convolution", {"transposed": True, "stride": (2, 2), "padding": ((1, 0), (1, 0))}),
        ("norm", "normalization", {"over": "batch", "epsilon": 1e-3, "momentum": 0.2, "training": False}),
        ("groups", "normalization", {"over": "group", "groups": 2, "epsilon": 1e-5}),
        ("response", "local_response_normalization", {"size": 5, "alpha": 0.3, "beta": 0.75, "k": 2.0}),
        ("act", "activation", {"function": "gelu_tanh"}),
        ("act#2", "activation", {"function": "gelu_tanh"}),
        ("leaky_relu", "activation", {"function": "leaky_relu", "slope": 0.1}),
        ("max_pool2d", "pool", {"how": "max", "window": (3, 3), "stride": (2, 2)}),
        ("avg_pool2d", "pool", {"how": "average", "count_padding": False}),
        ("pad", "pad", {"mode": "reflect", "amounts": ((0, 0), (0, 0), (0, 1), (1, 2))}),
        ("upsample_bilinear2d", "upsample", {"how": "bilinear", "align_corners": False, "half_pixel": True}),
        ("permute", "transpose", {"order": (0, 2, 3, 1)}),
        ("drop", "dropout", {"rate": 0.3, "training": False}),
        ("mean", "mean", {"axes": (1,), "keep": False}),
        ("fc", "linear", {"channels": 1}),
    ],
)
def test_terms(name, kind, expected, everything):
    operation = next(each for each in everything[2].operations if each.name == name)
    assert operation.kind == kind and expected.items() <= dict(operation.attributes).items()


def test_places_weights_and_lines(everything):
    _, inputs, found = everything
    operations = {each.name: each for each in found.operations}
    assert operations["rsub"].operands == (1,) and found.weight("rsub", "constant") == 2
    assert operations["conv"].weights == {"kernel": "conv.weight"} and found.weight("fc", "kernel").shape == (6, 4)
    made = operations["conv2d"]  # the kernel without its mean, made of a weight
    assert np.abs(found.weight(made.name, "kernel").mean((1, 2, 3))).max() < TOLERANCE
    lines = open(__file__).read().splitlines()
    for name, text in (("norm", "self.norm(self.conv"), ("leaky_relu", "F.leaky_relu"), ("fc", "self.fc(y)")):
        path, _, line = operations[name].source.rpartition(":")
        assert path == __file__ and text in lines[int(line) - 1]


def test_weights_put_in_place(everything):
    module, inputs, _ = everything
    found = recording.record(module, inputs)
    before = found.values(inputs)
    found.load({("fc", "kernel"): np.zeros((6, 4)), ("fc", "bias"): np.arange(4.0)})
    after = found.values(inputs)
    assert np.array_equal(after["fc"], np.tile(np.arange(4.0), (2, 1))) and np.array_equal(after["norm"], before["norm"])
    with pytest.raises(Error, match="rsub: its constant is a number"):
        found.load({("rsub", "constant"): np.array(3.0)})


def test_training():
    """Batch statistics, running statistics after the step, and gradients, as PyTorch's own."""
    torch.manual_seed(1)
    module = Everything()
    module.drop.p = 0.0
    inputs = [np.random.default_rng(1).standard_normal((3, 3, 17, 15))]
    found = replayed(module, inputs, training=True)
    outputs = [np.random.default_rng(2).standard_normal(found.values(inputs)[name].shape) for name in found.outputs]
    of_weights, (of_input,) = found.gradients(inputs, outputs)
    statistics = found.statistics(inputs)
    module.double()
    x = torch.tensor(inputs[0], requires_grad=True)
    results = module(x).values()
    sum((result * torch.tensor(output)).sum() for result, output in zip(results, outputs, strict=True)).backward()
    assert next(each for each in found.operations if each.name == "norm").attributes["training"]
    close = {"rtol": 1e-10, "atol": 1e-12}
    np.testing.assert_allclose(of_input, x.grad.numpy(), **close)
    np.testing.assert_allclose(of_weights["fc", "kernel"], module.fc.weight.grad.numpy().T, **close)
    np.testing.assert_allclose(of_weights["conv", "kernel"], module.conv.weight.grad.numpy(), **close)
    np.testing.assert_allclose(of_weights["norm", "scale"], module.norm.weight.grad.numpy(), **close)
    np.testing.assert_allclose(statistics["norm", "mean"], module.norm.running_mean.numpy(), **close)
    np.testing.assert_allclose(statistics["norm", "variance"], module.norm.running_var.numpy(), **close)


def test_attention_and_layers_over_words():
    """A transformer's layer, written with one weight for query, key and value; embeddings; a token of the module's own."""

    class Words(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.token = nn.Embedding(11, 8), nn.Parameter(torch.rand(1, 1, 8))
            self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
            self.conv = nn.Conv1d(8, 5, 3, padding=1)

        def forward(self, numbers):
            x = torch.cat([self.token.expand(numbers.shape[0], -1, -1), self.words(numbers)], 1)
            return torch.softmax(self.conv(self.layer(x).transpose(1, 2)), 1)

    found = replayed(Words().eval(), [np.arange(10).reshape(2, 5)])
    kinds = [each.kind for each in found.operations if each.kind not in ("reshape", "transpose", "slice", "dropout", "other")]
    normal = ["add", "normalization"]
    after = ["linear", *normal, "linear", "activation", "linear", *normal, "convolution", "activation"]
    assert kinds == ["embedding", "concatenate", "linear", "attention", *after]


@pytest.mark.parametrize("name", ["resnet20", "drn_c_18_small", "lenet_caffe", "preact_resnet18"])
def test_networks_of_the_zoo(name):
    net = torch_impl.build(name, seed=0).eval()
    size = (24, 24) if "res" in name or "drn" in name else net.spec["input"][1:]
    found = replayed(net, [np.random.default_rng(0).standard_normal((2, net.spec["input"][0], *size))])
    assert not [each for each in found.operations if each.kind == "other"]
    weights = [name for each in found.operations for name in each.weights.values()]
    assert set(weights) == {name for name in net.state_dict() if "num_batches" not in name}


@pytest.mark.long
@pytest.mark.parametrize("name", ["alexnet", "googlenet", "densenet121", "mobilenet_v3_small", "shufflenet_v2_x0_5"])
def test_networks_of_torchvision(name):
    from torchvision import models

    options = {"init_weights": False} if name == "googlenet" else {}
    replayed(getattr(models, name)(**options).eval(), [np.random.default_rng(0).standard_normal((1, 3, 64, 64))])


def test_casts():
    """To another floating type none happens, since all is in float64; to whole numbers one does."""

    class Casts(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv1d(2, 3, 1)

        def forward(self, x, mask):
            x = self.conv(x.float()) * mask.to(x.dtype) + torch.zeros(4, dtype=torch.float32)
            return x.half() + (10 * x).long() + x.to(torch.int64).type_as(x)

    torch.manual_seed(0)
    module, x = Casts(), np.random.default_rng(0).standard_normal((2, 2, 4))
    found = replayed(module, [x, np.arange(4)])
    with torch.no_grad():
        y = module.double().conv(torch.tensor(x)) * torch.arange(4)
    values = found.values([x, np.arange(4)])
    np.testing.assert_allclose(values[found.outputs[0]], y + (10 * y).long() + y.long(), rtol=TOLERANCE, atol=TOLERANCE)
    assert "int64" in [each.attributes["dtype"] for each in found.operations if each.kind == "cast"]
    program = torch.export.export(module.float(), (torch.zeros(2, 2, 4), torch.arange(4)))
    loaded = replayed(program.module(), [x, np.arange(4)])
    np.testing.assert_allclose(
        loaded.values([x, np.arange(4)])[loaded.outputs[0]], values[found.outputs[0]], rtol=TOLERANCE, atol=TOLERANCE
    )


@pytest.mark.parametrize("norm", [nn.utils.weight_norm, nn.utils.spectral_norm])
def test_old_norms_of_weights(norm):
    """They keep what they have worked out, which PyTorch refuses to copy."""
    torch.manual_seed(0)
    module, x = norm(nn.Linear(3, 4)), np.random.default_rng(0).standard_normal((2, 3))
    module(torch.zeros(2, 3))
    found = replayed(module.eval(), [x])
    values = found.values([x])[found.outputs[0]]
    np.testing.assert_allclose(values, module.double()(torch.tensor(x)).detach(), rtol=TOLERANCE, atol=TOLERANCE)


def test_a_module_that_cannot_be_copied_is_one_message():
    module = nn.Linear(3, 4)
    module.lock = threading.Lock()
    with pytest.raises(Error, match="Linear cannot be copied: .*lock"):
        recording.record(module, [np.zeros((2, 3))])


@pytest.mark.parametrize("training", [False, True])
def test_what_runs_in_a_context(training):
    """The operations within are recorded as those without; single precision within autocast is not."""

    class Contexts(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, x):
            with torch.autocast("cpu", torch.bfloat16):
                x = torch.relu(self.first(x))
            with torch.no_grad(), torch.autocast("cpu", torch.float16):
                y = self.last(x)
            with torch.enable_grad():
                return x + torch.sigmoid(y)

    torch.manual_seed(0)
    module, x = Contexts(), np.random.default_rng(0).standard_normal((2, 3))
    found = replayed(module, [x], training)
    names = [each.name for each in found.operations if each.kind != "stop_gradient"]
    assert names == ["first", "relu", "last", "sigmoid", "add"]
    module.double()
    y = torch.relu(module.first(torch.tensor(x)))
    y = (y + torch.sigmoid(module.last(y).detach())).sum()
    y.backward()
    of_weights, _ = found.gradients([x], [np.ones((2, 3))])
    np.testing.assert_allclose(of_weights["first", "kernel"], module.first.weight.grad.T, rtol=1e-10, atol=TOLERANCE)
    assert (("last", "kernel") in of_weights) is not training


def test_what_cannot_be_recorded():
    class Chooses(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    with pytest.raises(Error, match="Chooses cannot be recorded on inputs of 2x3: "):
        recording.record(Chooses(), [np.zeros((2, 3))])
    with pytest.raises(Error, match="Linear cannot be recorded on inputs of 2x3: "):
        recording.record(nn.Linear(4, 5), [np.zeros((2, 3))])


def test_flow_that_has_no_common_term():
    class Chooses(nn.Module):
        def forward(self, x):
            return torch.cond(x.sum() > 0, lambda x: x * 2, lambda x: x - 1, (x,))

    class Scales(nn.Module):
        def forward(self, x):
            return x * x.sum().item()

    for kind, operator, text in ((Chooses, "cond", "torch.cond"), (Scales, "item", ".item()")):
        with pytest.raises(Error) as caught:
            recording.record(kind(), [np.zeros((2, 3))])
        message = f"{caught.value}"
        start, end = f"{kind.__name__}: runs PyTorch's {operator} (test_recording_torch.py:", "), which has no common term"
        assert message.startswith(start) and message.endswith(end)
        line = int(message.removeprefix(start).removesuffix(end))
        assert text in open(__file__).read().splitlines()[line - 1]


def test_a_file_of_torch_export(tmp_path):
    net, inputs = torch_impl.build("resnet20", seed=0).eval(), [np.random.default_rng(0).standard_normal((2, 3, 16, 16))]
    program = torch.export.export(net, (torch.zeros(2, 3, 16, 16),))
    torch.export.save(program, tmp_path / "net.pt2")
    ours, loaded = recording.record(net, inputs), recording.record(recording.load(tmp_path / "net.pt2"), inputs)
    assert [each.kind for each in loaded.operations] == [each.kind for each in ours.operations]
    results = [found.values(inputs)[found.outputs[0]] for found in (ours, loaded)]
    np.testing.assert_allclose(*results, rtol=TOLERANCE, atol=TOLERANCE)
    with zipfile.ZipFile(tmp_path / "other.pt2", "w") as file:
        file.writestr("readme", "no program")
    with pytest.raises(Error, match="other.pt2: not a program that torch.export can load: "):
        recording.load(tmp_path / "other.pt2")
