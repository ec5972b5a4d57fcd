"""`twins.diff` of other forms than a classifier of images: a block of a transformer, a U-Net, a network over time, one of words
and numbers."""

import math

import numpy as np
import pytest
from torch import nn
from torch.nn import functional

import keras_impl
import torch_impl.recording
import twins
from shared.checks import Error
from twins import backends
from twins.differences import opening, whole_numbers

import keras  # isort: skip
import torch  # isort: skip
from keras import layers, ops  # isort: skip

pytestmark = pytest.mark.long


class Block(nn.Module):
    """A block of a transformer over (batch, 7 times, 16 features), 4 heads, norms first."""

    def __init__(self):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(16), nn.LayerNorm(16)
        self.query, self.key, self.value, self.out = (nn.Linear(16, 16) for _ in range(4))
        self.wide, self.narrow = nn.Linear(16, 32), nn.Linear(32, 16)

    def forward(self, x):
        y = self.norm1(x)
        q, k, v = (part(y).unflatten(2, (4, 4)).transpose(1, 2) for part in (self.query, self.key, self.value))
        y = functional.scaled_dot_product_attention(q, k, v)
        x = x + self.out(y.transpose(1, 2).flatten(2))
        return x + self.narrow(functional.gelu(self.wide(self.norm2(x))))


def block(epsilon=1e-5, approximate=False):
    """`Block` in Keras."""
    sequence = keras.Input((7, 16))
    y = layers.LayerNormalization(epsilon=epsilon, name="norm1")(sequence)
    x = layers.Add()([sequence, layers.MultiHeadAttention(4, 4, name="attention")(y, y)])
    y = layers.Dense(32, name="wide")(layers.LayerNormalization(epsilon=1e-5, name="norm2")(x))
    y = layers.Activation(lambda x: ops.gelu(x, approximate=approximate), name="gelu")(y)
    return keras.Model(sequence, layers.Add()([x, layers.Dense(16, name="narrow")(y)]))


class UNet(nn.Module):
    """Two levels: down by a max pool, up by a transposed convolution, joined by a concatenation."""

    def __init__(self):
        super().__init__()
        self.first, self.low = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 16, 3, padding=1)
        self.up, self.last = nn.ConvTranspose2d(16, 8, 2, 2), nn.Conv2d(16, 8, 3, padding=1)
        self.out = nn.Conv2d(8, 2, 1)

    def forward(self, x):
        high = torch.relu(self.first(x))
        low = torch.relu(self.low(functional.max_pool2d(high, 2)))
        return self.out(torch.relu(self.last(torch.cat([high, self.up(low)], 1))))


def unet(relu="relu", swap=False):
    """`UNet` in Keras."""
    image = keras.Input((12, 12, 3))
    high = layers.Conv2D(8, 3, padding="same", activation="relu", name="first")(image)
    low = layers.Conv2D(16, 3, padding="same", activation=relu, name="low")(layers.MaxPooling2D(2)(high))
    up = layers.Conv2DTranspose(8, 2, 2, name="up")(low)
    x = layers.Concatenate(name="concat")([up, high] if swap else [high, up])
    return keras.Model(image, layers.Conv2D(2, 1, name="out")(layers.Conv2D(8, 3, padding="same", activation="relu")(x)))


class Times(nn.Module):
    """Convolutions over 32 times, with a stride and a dilation, and a linear layer over what is flattened."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv1d(4, 8, 5, 2, 2), nn.BatchNorm1d(8)
        self.dilated, self.out = nn.Conv1d(8, 8, 3, padding=2, dilation=2), nn.Linear(64, 3)

    def forward(self, x):
        x = functional.max_pool1d(torch.relu(self.norm(self.conv(x))), 2)
        return self.out(torch.relu(self.dilated(x)).flatten(1))


def times(epsilon=1e-5, dilation=2):
    """`Times` in Keras."""
    x = sequence = keras.Input((32, 4))
    x = layers.Conv1D(8, 5, 2, name="conv")(layers.ZeroPadding1D(2)(x))
    x = layers.ReLU()(layers.BatchNormalization(epsilon=epsilon, name="norm")(x))
    x = layers.MaxPooling1D(2)(x)
    x = layers.Conv1D(8, 3, padding="same", dilation_rate=dilation, activation="relu", name="dilated")(x)
    return keras.Model(sequence, layers.Dense(3, name="out")(layers.Flatten()(x)))


class Words(nn.Module):
    """12 words, embedded and averaged, beside 5 numbers."""

    def __init__(self):
        super().__init__()
        self.words, self.numbers, self.out = nn.Embedding(50, 8), nn.Linear(5, 8), nn.Linear(16, 3)

    def forward(self, ids, rest):
        return self.out(torch.cat([self.words(ids).mean(1), torch.tanh(self.numbers(rest))], 1))


def words(function="tanh", trainable=True):
    """`Words` in Keras."""
    given = [keras.Input((12,), dtype="int32"), keras.Input((5,))]
    x = layers.GlobalAveragePooling1D()(layers.Embedding(50, 8, name="words", trainable=trainable)(given[0]))
    y = layers.Dense(8, activation=function, name="numbers")(given[1])
    return keras.Model(given, layers.Dense(3, name="out")(layers.Concatenate()([x, y])))


FORMS = {"block": (Block, block, (7, 16)), "unet": (UNet, unet, (3, 12, 12)), "times": (Times, times, (4, 32)),
         "words": (Words, words, [whole_numbers((12,), 0, 49), (5,)])}  # fmt: skip


def compared(form, train=0, **fault):
    torch.manual_seed(0)
    keras.utils.set_random_seed(0)
    module, port, shape = FORMS[form]
    return twins.diff(module().eval(), port(**fault), input=shape, train=train)


@pytest.mark.parametrize("form", FORMS)
def test_a_sound_port_is_the_same_function(form):
    report = compared(form)
    assert report.findings == [] and report.outputs < 1e-6 and report.same


@pytest.mark.parametrize(
    ("form", "fault", "operation", "attribute"),
    [
        ("block", {"epsilon": 1e-3}, "norm1", "epsilon"),
        ("block", {"approximate": True}, "gelu", "function"),
        ("unet", {"relu": None}, "relu", "left out"),
        ("unet", {"swap": True}, "concat", "operands"),
        ("times", {"epsilon": 1e-3}, "norm", "epsilon"),
        ("times", {"dilation": 1}, "dilated", "dilation"),
        ("words", {"function": "sigmoid"}, "numbers", "function"),
    ],
)
def test_a_fault_is_named(form, fault, operation, attribute):
    findings = compared(form, **fault).findings
    told = [(f.operations[1] or f.operations[0], f.attribute) for f in findings]
    assert [name for _, name in told] == [attribute] and operation in told[0][0], told


@pytest.mark.parametrize("form", FORMS)
def test_a_sound_port_trains_alike(form):
    report = compared(form, train=2)
    attributes = {finding.attribute for finding in report.training}
    assert attributes == ({"momentum", "running variance"} & attributes if form == "times" else set())
    assert report.trained.measures and (report.sound or form == "times")


@pytest.mark.parametrize("method", ["apply", "values"])
def test_memory_that_runs_out_is_no_difference(method, monkeypatch):
    def runs_out(*given):
        raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 MiB")

    monkeypatch.setattr(torch_impl.recording.Recording, method, runs_out)
    nets = [nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()) for _ in range(2)]
    with pytest.raises(RuntimeError, match="out of memory"):
        twins.diff(*nets, input=(3, 8, 8))


def test_a_frozen_embedding_is_named():
    report = compared("words", train=1, trainable=False)
    assert [(f.operations, f.attribute) for f in report.training] == [(("words", "words"), "trainable")]
    assert report.trained.divergence.quantity == "gradients" and report.same


class KerasBlock(keras.Model):
    """A part of `Block` that does not say what it takes."""

    def __init__(self):
        super().__init__()
        self.norm, self.wide = layers.LayerNormalization(epsilon=1e-5), layers.Dense(16, name="wide")

    def call(self, x):
        return self.wide(self.norm(x))


@pytest.mark.parametrize("shape", [(7, 16), (16, 16)])
def test_time_before_features_in_both(shape):
    block = nn.Sequential(nn.LayerNorm(16), nn.Linear(16, 16))
    assert twins.diff(block, KerasBlock(), input=shape, same_axes=True).same
    given = keras.Input(shape)
    assert twins.diff(block, keras.Model(given, KerasBlock()(given)), same_axes=True).same


def test_inputs_by_name_and_whole_numbers_by_default():
    port = words()
    assert twins.diff(Words(), keras.Model({"ids": port.inputs[0], "rest": port.inputs[1]}, port.outputs)).same


def test_networks_that_take_other_inputs():
    with pytest.raises(Error, match="A takes 1x32x32, B 1x28x28: pass an input that both take"):
        twins.diff(torch_impl.build("lenet5"), keras_impl.build("lenet"))


def test_a_network_that_takes_another_number_of_inputs_is_one_message():
    with pytest.raises(Error, match="cannot be recorded on inputs of 2x12"):
        twins.diff(Words(), words(), input=whole_numbers((12,), 0, 49))


class Written(nn.Module):
    """Functions that the code writes out, in operators; some in place."""

    def __init__(self):
        super().__init__()
        self.wide, self.out = nn.Linear(16, 16), nn.Linear(16, 3)

    def forward(self, x):
        x = x * torch.sigmoid(x)
        x = self.wide(x)
        x = x * functional.relu6(x + 3, inplace=True) / 6
        x = 0.5 * x * (1 + torch.erf(x / 2**0.5))
        return self.out(0.5 * x * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3))))


def test_functions_that_are_written_out():
    given = keras.Input((16,))
    x = layers.Dense(16)(layers.Activation("silu")(given))
    x = ops.gelu(ops.gelu(ops.hard_silu(x), approximate=False), approximate=True)
    report = twins.diff(Written(), keras.Model(given, layers.Dense(3)(x)))
    assert report.same and report.only == ([], [])
    functions = [
        operation.attributes.get("function")
        for operation in backends.recorder("torch").record(Written(), [np.ones((2, 16))]).operations
    ]
    assert functions == ["silu", None, "hard_swish", "gelu", "gelu_tanh", None]
    other = twins.diff(
        Written(), keras.Model(given, layers.Dense(3)(ops.gelu(layers.Dense(16)(layers.Activation("silu")(given)))))
    )
    assert not other.same


class Means(nn.Module):
    """An operation that has the name of a role: `mean` before a batch norm."""

    def __init__(self, epsilon=1e-5):
        super().__init__()
        self.norm = nn.BatchNorm1d(3, eps=epsilon)

    def forward(self, x):
        return self.norm(x.mean((2, 3)))


def test_an_operation_with_the_name_of_a_role():
    findings = twins.diff(Means().eval(), Means(1e-3).eval(), input=(3, 4, 4)).findings
    assert [(finding.operations, finding.attribute) for finding in findings] == [(("norm", "norm"), "epsilon")]


@pytest.mark.parametrize("framework", ["torch", "keras"])
@pytest.mark.parametrize("b_only", [False, True])
def test_words_beyond_an_embedding_are_one_message(framework, b_only):
    if framework == "keras" and keras.backend.backend() == "jax":
        pytest.skip("JAX reads beyond the end of an array without a word")
    if framework == "torch":
        net, large = nn.Embedding(50, 8), nn.Embedding(1000, 8)
    else:
        given = keras.Input((12,), dtype="int32")
        net, large = (keras.Model(given, layers.Embedding(words, 8)(given)) for words in (50, 1000))
    nets = (large, net) if b_only else (net, large)
    name = "B" if b_only else "A"
    with pytest.raises(Error, match=rf"^{name}: does not run on inputs of 2x12, from \d+ to 9\d\d: \w+Error: "):
        twins.diff(*nets, input=whole_numbers((12,), 0, 999), weights="own")


@pytest.mark.parametrize("size", [1, 3])
def test_a_program_of_another_batch(size, tmp_path):
    net = Times().eval()
    torch.export.save(torch.export.export(net, (torch.zeros(size, 4, 32),)), tmp_path / "net.pt2")
    program = opening.open_network(str(tmp_path / "net.pt2"), {}, "--a-args")
    for given in ((4, 32), np.random.default_rng(0).standard_normal((2, 4, 32))):
        assert twins.diff(program, net, input=given).same and twins.diff(net, program, input=given).same


def test_a_program_of_any_batch(tmp_path):
    net, sizes = Times().eval(), ({0: torch.export.Dim("batch", min=2)},)
    torch.export.save(torch.export.export(net, (torch.zeros(3, 4, 32),), dynamic_shapes=sizes), tmp_path / "net.pt2")
    assert twins.diff(opening.open_network(str(tmp_path / "net.pt2"), {}, "--a-args"), net, input=(4, 32)).same


def test_programs_of_two_batches_are_one_message():
    one, two = (torch.export.export(Times().eval(), (torch.zeros(size, 4, 32),)).module() for size in (1, 3))
    with pytest.raises(Error, match="A was exported for batches of 1, B of 3"):
        twins.diff(one, two, input=(4, 32))


class Chain(nn.Module):
    """A linear layer, and what `function` makes of it."""

    def __init__(self, function):
        super().__init__()
        self.fc, self.function = nn.Linear(6, 5), function

    def forward(self, x):
        return self.function(self.fc(x))


class Port(keras.Model):
    """`Chain` in Keras."""

    def __init__(self, function):
        super().__init__()
        self.fc, self.function = layers.Dense(5, name="fc"), function

    def call(self, x):
        return self.function(self.fc(x))


def chained(ours, theirs, train=0):
    """`Chain` beside `Port`."""
    torch.manual_seed(0)
    keras.utils.set_random_seed(0)
    return twins.diff(Chain(ours).eval(), Port(theirs), input=(6,), train=train)


@pytest.mark.parametrize(
    ("ours", "theirs"), [(functional.relu6, ops.relu), (functional.relu, ops.relu6), (functional.celu, ops.selu)]
)
def test_an_activation_that_parts_where_the_input_does_not_reach(ours, theirs):
    report = chained(ours, theirs)
    assert [(f.kind, f.attribute) for f in report.findings] == [("activation", "function")] and not report.same


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (functional.relu6, ops.relu6), (functional.celu, ops.elu), (functional.elu, ops.celu),
        (functional.gelu, lambda x: ops.gelu(x, approximate=False)), (functional.selu, ops.selu),
        (functional.hardsigmoid, ops.hard_sigmoid), (functional.hardswish, ops.hard_silu),
        (functional.mish, keras.activations.mish), (lambda x: torch.log_softmax(x, 1), ops.log_softmax),
        (functional.softplus, ops.softplus), (functional.logsigmoid, ops.log_sigmoid), (functional.silu, ops.silu),
        (functional.leaky_relu, lambda x: ops.leaky_relu(x, 0.01)), (lambda x: torch.softmax(x, 1), ops.softmax),
        (lambda x: torch.clamp(x, 0, 6), ops.relu6),
    ],
)  # fmt: skip
def test_an_activation_by_another_name_is_the_same(ours, theirs):
    report = chained(ours, theirs)
    assert report.findings == [] and report.same


def test_no_number_in_both_is_no_difference():
    masked = torch.arange(5) > 2

    def ours(x):
        return torch.softmax(x.masked_fill(masked, -math.inf), 1)

    report = chained(ours, lambda x: ops.softmax(ops.where(np.arange(5) > 2, -np.inf, x)))
    assert report.findings == [] and report.same
    report = chained(lambda x: torch.log(x + 1e-6), lambda x: ops.log(x + 1e-6))
    assert report.findings == [] and report.same
    assert any("log" in note and "partly NaN" in note for note in report.notes), report.notes
    assert [f.attribute for f in chained(lambda x: torch.log(x + 1e-6), lambda x: ops.log(x + 1e-2)).findings] != []


def test_a_network_that_gives_no_number_is_one_message():
    with pytest.raises(Error, match="A returns no finite number on this input, from .*log on: pass a picture or an array"):
        chained(lambda x: torch.log(x).sum(1), lambda x: ops.sum(ops.log(x), 1))


class Sample(layers.Layer):
    """The mean, with noise, as a variational autoencoder draws it."""

    seed = keras.random.SeedGenerator(0)

    def call(self, x):
        return x + ops.exp(0.5 * x) * keras.random.normal(ops.shape(x), seed=self.seed)


@pytest.mark.parametrize(
    ("ours", "theirs", "drawn"),
    [
        (lambda x: x + torch.exp(0.5 * x) * torch.randn_like(x), Sample(), "A: random numbers are drawn in randn_like:"),
        (lambda x: torch.tanh(functional.dropout(x)), ops.tanh, "A: random numbers are drawn in dropout:"),
        (torch.tanh, lambda x: ops.tanh(keras.random.dropout(x, 0.5, seed=Sample.seed)), "B: random numbers are drawn in "),
    ],
)
def test_random_numbers_are_told_and_not_blamed(ours, theirs, drawn):
    report = chained(ours, theirs)
    assert report.findings == [] and report.outputs is None
    assert any(note.startswith(drawn) for note in report.notes), report.notes
    assert not report.same and not report.sound


def test_beside_random_numbers_a_fault_is_named():
    report = chained(lambda x: torch.tanh(functional.dropout(x)), ops.sigmoid)
    assert [(f.attribute, f.values) for f in report.findings] == [("function", ("tanh", "sigmoid"))]


def test_another_number_of_results_is_a_finding():
    def ours(x):
        y = torch.relu(x)
        return torch.tanh(y), y

    for theirs, values in ((lambda x: ops.tanh(ops.relu(x)), (2, 1)), (lambda x: [ops.tanh(ops.relu(x))] * 3, (2, 3))):
        report = chained(ours, theirs)
        assert [(f.kind, f.attribute, f.values) for f in report.findings] == [("output", "number of results", values)]
        assert not report.same
    assert chained(ours, lambda x: [ops.tanh(ops.relu(x)), ops.relu(x)]).same


@pytest.mark.parametrize("train", [0, 1])
def test_results_with_keys_are_compared_by_key(train):
    def ours(x):
        return {"logits": torch.tanh(x), "aux": (torch.relu(x), torch.sigmoid(x))}

    def theirs(x):
        return {"logits": ops.tanh(x), "aux": (ops.relu(x), ops.sigmoid(x))}

    report = chained(ours, theirs, train)
    assert report.findings == [] and report.sound and report.outputs < 1e-6
    report = chained(ours, lambda x: theirs(x) | {"logits": ops.relu(x), "aux": (ops.tanh(x), ops.sigmoid(x))})
    assert report.findings and not report.same


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(16, 8, batch_first=True)

    def forward(self, x):
        return self.lstm(x)[0]


def test_weights_that_cannot_be_copied_are_not_blamed():
    given = keras.Input((7, 16))
    report = twins.diff(Recurrent(), keras.Model(given, layers.LSTM(8, return_sequences=True)(given)), same_axes=True)
    assert report.findings == [] and not report.same and len(report.uncopied) == 1
    assert report.in_words.startswith("It cannot be determined") and "is not judged" in report.notes[-1]


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc, self.factor, self.shift = nn.Linear(6, 5), nn.Parameter(torch.tensor(0.3)), nn.Parameter(torch.tensor([0.2]))

    def forward(self, x):
        return 2 * torch.tanh(self.fc(x) * self.factor) + self.shift


class KerasScaled(keras.Model):
    def __init__(self, number):
        super().__init__()
        self.fc, self.number = layers.Dense(5), number
        self.factor, self.shift = self.add_weight((), "ones", name="factor"), self.add_weight((1,), "zeros", name="shift")

    def call(self, x):
        return self.number * ops.tanh(self.fc(x) * self.factor) + self.shift


def test_a_weight_of_one_number_is_copied_and_a_number_in_the_code_is_not():
    assert twins.diff(Scaled(), KerasScaled(2), input=(6,)).same
    assert [finding.attribute for finding in twins.diff(Scaled(), KerasScaled(3), input=(6,)).findings] == ["factor"]


class Token(nn.Module):
    """A learned token in front of a sequence."""

    def __init__(self):
        super().__init__()
        self.fc, self.token = nn.Linear(16, 8), nn.Parameter(torch.randn(1, 1, 16))

    def forward(self, x):
        return self.fc(torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1))


class KerasToken(keras.Model):
    def __init__(self, first):
        super().__init__()
        self.fc, self.first = layers.Dense(8), first
        self.token = self.add_weight((1, 1, 16), "random_normal", name="token")

    def call(self, x):
        token = ops.broadcast_to(self.token, (ops.shape(x)[0], 1, 16))
        return self.fc(ops.concatenate([token, x] if self.first else [x, token], 1))


@pytest.mark.parametrize("first", [True, False])
def test_a_learned_token_in_front_of_a_sequence(first):
    report = twins.diff(Token(), KerasToken(first), input=(7, 16), same_axes=True)
    assert report.same == first
    assert {finding.kind for finding in report.findings} <= {"concatenate"}
