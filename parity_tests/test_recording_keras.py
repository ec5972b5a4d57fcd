"""Recordings of Keras models: what they say of every operation, and that each runs on its own as it did.

On TensorFlow; `test_jax.py` runs the same in a process whose Keras is on JAX.
"""

import importlib

import numpy as np
import pytest

import keras_impl
from keras_impl import recording
from shared.checks import Error
from twins import ladder

import keras  # isort: skip
from keras import ops  # isort: skip

BACKEND = keras.backend.backend()
framework = importlib.import_module(BACKEND)
leaky_relu = framework.nn.leaky_relu
L = keras.layers
RNG = np.random.default_rng(0)


class Custom(keras.Model):
    """Layers in lists, nested and shared, and functions of the backend and Keras between them."""

    def __init__(self):
        super().__init__()
        self.stem = L.Conv2D(4, 3, 2, "same")
        self.shared = L.Conv2D(4, 1)
        self.blocks = [keras.Sequential([L.Conv2D(4, 3, padding="same"), L.ReLU()], name="one"), L.BatchNormalization()]

    def call(self, x, training=False):
        x = self.shared(self.shared(self.stem(x)))
        for block in self.blocks:
            x = block(x, training=training)
        return leaky_relu(1.5 - x, 0.1) * ops.sigmoid(x)


def array(*shape):
    return RNG.normal(size=shape).astype("float32")


def randomised(model, *shape):
    """The model with weights that show where each is: all positive, none the same."""
    model(array(*shape))
    for weight in model.weights:
        weight.assign(RNG.uniform(0.5, 1.5, weight.shape))
    return model


def check(model, *inputs):
    """The recording of a model; its values are the model's, and each operation alone gives them again."""
    before = [np.asarray(weight) for weight in model.weights]
    policies = [layer.dtype_policy for layer in model._flatten_layers()]
    rec = recording.record(model, inputs)
    values = rec.values(inputs)
    expected = keras.tree.flatten(model(inputs[0] if len(inputs) == 1 else list(inputs)))
    for name, output in zip(rec.outputs, expected, strict=True):
        assert ladder.relative(values[name], np.asarray(output)) < 1e-5  # the model computes in float32
    names = [operation.name for operation in rec.operations]
    assert len({*names, *rec.inputs}) == len(names) + len(rec.inputs)
    for operation in rec.operations:
        weights = {role: rec.weight(operation.name, role) for role in operation.weights}
        again = rec.apply(operation.name, [values[name] for name in operation.inputs], weights)
        np.testing.assert_allclose(again, values[operation.name], rtol=1e-12, atol=1e-12)
        assert again.shape == operation.shape
    for old, weight in zip(before, model.weights, strict=True):
        np.testing.assert_array_equal(old, np.asarray(weight))
    assert policies == [layer.dtype_policy for layer in model._flatten_layers()]
    return rec


def kinds(rec):
    return [operation.attributes.get("function", operation.kind) for operation in rec.operations]


OURS = ("preact_resnet18", "resnet18", "googlenet", "drn_c_26")
IMAGE = (2, 9, 9, 4)
SEQUENCE = (2, 8, 4)
CASES = {
    "same": (L.Conv2D(6, 3, 2, "same", activation="relu"), IMAGE, ["convolution", "relu"], {"padding": ((1, 1), (1, 1))}),
    "even": (L.Conv2D(6, 4, 2, "same"), (1, 8, 8, 4), ["convolution"], {"padding": ((1, 1), (1, 1)), "stride": (2, 2)}),
    "dilated": (L.Conv2D(6, 3, padding="same", dilation_rate=2), IMAGE, ["convolution"], {"padding": ((2, 2),) * 2}),
    "groups": (L.Conv2D(6, 3, groups=2), IMAGE, ["convolution"], {"groups": 2}),
    "depthwise": (L.DepthwiseConv2D(3, depth_multiplier=2), IMAGE, ["convolution"], {"groups": 4}),
    "separable": (L.SeparableConv2D(6, 3), IMAGE, ["convolution"] * 2, {"groups": 4}),
    "transposed": (L.Conv2DTranspose(6, 3, 2, "same"), IMAGE, ["convolution"], {"transposed": True, "stride": (2, 2)}),
    "conv1d": (L.Conv1D(6, 3, padding="same"), SEQUENCE, ["convolution"], {"padding": ((1, 1),), "channels": 2}),
    "causal": (L.Conv1D(6, 3, padding="causal", dilation_rate=2), SEQUENCE, ["pad", "convolution"], {}),
    "conv3d": (L.Conv3D(3, 2, padding="same"), (1, 4, 4, 4, 2), ["convolution"], {"stride": (1, 1, 1)}),
    "max": (L.MaxPooling2D(3, 2, "same"), IMAGE, ["pool"], {"how": "max", "window": (3, 3), "padding": ((1, 1), (1, 1))}),
    "average": (L.AveragePooling2D(2), IMAGE, ["pool"], {"how": "average", "stride": (2, 2), "padding": ((0, 0), (0, 0))}),
    "pool1d": (L.MaxPooling1D(2), SEQUENCE, ["pool"], {"window": (2,), "channels": 2}),
    "batch norm": (L.BatchNormalization(momentum=0.9), IMAGE, ["normalization"], {"epsilon": 1e-3, "momentum": 0.1}),
    "layer norm": (L.LayerNormalization(epsilon=1e-6), SEQUENCE, ["normalization"], {"channels": (2,), "epsilon": 1e-6}),
    "group norm": (L.GroupNormalization(2), IMAGE, ["normalization"], {"over": "group", "groups": 2}),
    "rms norm": (L.RMSNormalization(), SEQUENCE, ["normalization"], {"over": "rms"}),
    "dense": (L.Dense(5, activation="softmax"), (2, 4), ["linear", "softmax"], {"channels": 1}),
    "dense of three axes": (L.Dense(5), SEQUENCE, ["linear"], {"channels": 2}),
    "einsum": (L.EinsumDense("abc,cd->abd", (8, 5), bias_axes="d"), SEQUENCE, ["linear"], {}),
    "gelu": (L.Activation("gelu"), IMAGE, ["gelu"], {}),
    "tanh gelu": (L.Activation(lambda x: keras.activations.gelu(x, approximate=True)), IMAGE, ["gelu_tanh"], {}),
    "silu": (L.Activation("silu"), IMAGE, ["silu"], {}),
    "hard swish": (L.Activation("hard_silu"), IMAGE, ["hard_swish"], {}),
    "hard sigmoid": (L.Activation("hard_sigmoid"), IMAGE, ["hard_sigmoid"], {}),
    "mish": (L.Activation("mish"), IMAGE, ["mish"], {}),
    "relu6": (L.ReLU(6), IMAGE, ["relu6"], {}),
    "leaky relu": (L.LeakyReLU(0.3), IMAGE, ["leaky_relu"], {"slope": 0.3}),
    "elu": (L.ELU(), IMAGE, ["elu"], {"slope": 1.0}),
    "nearest": (L.UpSampling2D(2), IMAGE, ["upsample"], {"how": "nearest", "size": (18, 18)}),
    "bilinear": (L.UpSampling2D(3, interpolation="bilinear"), IMAGE, ["upsample"], {"how": "bilinear", "size": (27, 27)}),
    "global": (L.GlobalAveragePooling2D(keepdims=True), IMAGE, ["mean"], {"axes": (1, 2), "keep": True}),
    "padded": (L.ZeroPadding2D(((1, 2), (0, 1))), IMAGE, ["pad"], {"amounts": ((0, 0), (1, 2), (0, 1), (0, 0))}),
    "cropped": (L.Cropping2D(1), IMAGE, ["slice"], {"starts": (0, 1, 1, 0), "stops": (2, 8, 8, 4)}),
    "rescaled": (L.Rescaling(1 / 255, -0.5), IMAGE, ["multiply", "add"], {}),
    "recurrent": (L.LSTM(3), SEQUENCE, ["other"], {}),
    "permuted": (L.Permute((3, 1, 2)), IMAGE, ["transpose"], {"order": (0, 3, 1, 2)}),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_layers_are_recorded_in_common_terms(case):
    layer, shape, expected, attributes = CASES[case]
    if case == "einsum":
        layer = L.EinsumDense("abc,cd->abd", (shape[1], 5), bias_axes="d")
    rec = check(randomised(keras.Sequential([layer]), *shape), array(*shape))
    saturated = ("minimum", "maximum") if case == "resized" else ()  # to the range of float32, by Keras on TensorFlow
    assert [kind for kind in kinds(rec) if kind not in saturated] == expected
    assert {name: rec.operations[0].attributes[name] for name in attributes} == attributes
    assert not rec.notes


FUNCTIONS = {
    "reflected": (lambda x: ops.pad(x, [(0, 0), (1, 2), (2, 1), (0, 0)], "reflect"), IMAGE, ["pad"], {"mode": "reflect"}),
    "resized": (lambda x: ops.image.resize(x, (18, 27)), IMAGE, ["upsample"], {"how": "bilinear", "size": (18, 27)}),
    "highest": (lambda x: ops.max(x, (1, 2), keepdims=True), IMAGE, ["reduce"], {"how": "max", "axes": (1, 2), "keep": True}),
    "scaled": (lambda x: x * ops.mean(x, (1, 2), keepdims=True), IMAGE, ["mean", "multiply"], {"axes": (1, 2), "keep": True}),
    "shifted": (lambda x: x - ops.mean(x, (0, 1, 2)), IMAGE, ["mean", "subtract"], {"axes": (0, 1, 2), "keep": False}),
    "indexed": (lambda x: x[:, 1], SEQUENCE, ["slice", "reshape"], {"starts": (0, 1, 0), "stops": (2, 2, 4)}),
    "every other": (lambda x: x[:, ::2, 1:-1], IMAGE, ["slice"], {"steps": (1, 2, 1, 1), "stops": (2, 9, 8, 4)}),
    "product": (lambda x: ops.matmul(x, ops.transpose(x, (0, 2, 1))), SEQUENCE, ["transpose", "matmul"], {"order": (0, 2, 1)}),
    "log softmax": (ops.log_softmax, (2, 4), ["log_softmax"], {"axis": 1}),
    "clipped": (lambda x: ops.clip(x, 0, 6), (2, 4), ["relu6"], {}),
    "chosen": (lambda x: ops.where(x > 0, x, 0.2 * x), (2, 4), ["leaky_relu"], {"slope": 0.2}),
    "padded average": (lambda x: ops.average_pool(x, 3, 2, "same"), IMAGE, ["pool"], {"count_padding": False}),
}


@pytest.mark.parametrize("case", FUNCTIONS)
def test_functions_are_recorded_in_common_terms(case):
    function, shape, expected, attributes = FUNCTIONS[case]
    rec = check(randomised(keras.Sequential([L.Lambda(function)]), *shape), array(*shape))
    saturated = ("minimum", "maximum") if case == "resized" else ()  # to the range of float32, by Keras on TensorFlow
    assert [kind for kind in kinds(rec) if kind not in saturated] == expected
    assert {name: rec.operations[0].attributes[name] for name in attributes} == attributes


def test_kernels_come_in_one_layout():
    model = randomised(keras.Sequential([L.Conv2D(6, (3, 5), groups=2, name="c"), L.Flatten(), L.Dense(3, name="d")]), *IMAGE)
    rec = check(model, array(*IMAGE))
    conv, dense = model.layers[0], model.layers[2]
    np.testing.assert_array_equal(rec.weight("c", "kernel"), np.transpose(conv.kernel, (3, 2, 0, 1)))
    np.testing.assert_array_equal(rec.weight("d", "kernel"), dense.kernel)
    np.testing.assert_array_equal(rec.weight("c", "bias"), conv.bias)
    assert dict(rec.operations[0].weights) == {"kernel": "c.kernel", "bias": "c.bias"}


def test_a_model_of_ones_own_has_names_places_and_shared_layers():
    model = randomised(Custom(), 1, 8, 8, 3)
    rec = check(model, array(1, 8, 8, 3))
    names = [operation.name for operation in rec.operations]
    assert names[:3] == ["stem", "shared", "shared#2"]
    assert kinds(rec)[3:] == ["convolution", "relu", "normalization", "subtract", "leaky_relu", "sigmoid", "multiply"]
    assert "test_recording_keras.py" in rec.operations[-1].source
    assert rec.operations[6].operands == (1,)


def test_loaded_weights_are_the_recordings_alone():
    model = randomised(keras.Sequential([L.Conv2D(2, 3, name="c")]), *IMAGE)
    x = array(*IMAGE)
    rec = recording.record(model, [x])
    rec.load({("c", "kernel"): np.zeros((2, 4, 3, 3)), ("c", "bias"): np.array([1.0, 2.0])})
    np.testing.assert_array_equal(rec.values([x])["c"], np.broadcast_to([1.0, 2.0], (2, 7, 7, 2)))
    assert np.asarray(model.layers[0].kernel).min() > 0


@pytest.mark.parametrize("causal", [True, False])
def test_attention_is_one_operation(causal):
    q = keras.Input(SEQUENCE[1:])
    model = keras.Model(q, L.MultiHeadAttention(2, 3)(q, q, use_causal_mask=causal))
    rec = check(randomised(model, *SEQUENCE), array(*SEQUENCE))
    moves = {"transpose", "reshape"}
    assert [kind for kind in kinds(rec) if kind not in moves] == ["linear"] * 3 + ["attention", "linear"]
    found = next(operation for operation in rec.operations if operation.kind == "attention")
    assert found.attributes["causal"] is causal
    assert found.attributes["scale"] == pytest.approx(3**-0.5, rel=1e-12) and found.shape == (2, 2, 8, 3)


def test_embedding_and_several_inputs():
    words, x = keras.Input((5,), dtype="int32"), keras.Input((5, 3))
    model = keras.Model([words, x], L.Add()([L.Embedding(7, 3)(words), x]))
    numbers = RNG.integers(0, 7, (2, 5))
    rec = check(model, numbers.astype("int32"), array(2, 5, 3))
    assert kinds(rec) == ["embedding", "add"] and len(rec.inputs) == 2
    name = rec.operations[0].name
    np.testing.assert_array_equal(rec.apply(name, [numbers]), rec.apply(name, [numbers.astype("int32")]))  # as PyTorch has them


def test_groups_written_as_several_convolutions_are_one():
    rec = check(randomised(keras.Sequential([keras_impl.layers.Conv(4, 6, 3, groups=2)]), *IMAGE), array(*IMAGE))
    assert kinds(rec) == ["convolution"] and rec.operations[0].attributes["groups"] == 2
    assert set(rec.operations[0].weights) == {"kernel", "bias"}


@pytest.mark.parametrize("name", ["resnet20", *(pytest.param(name, marks=pytest.mark.long) for name in OURS)])
def test_our_networks_are_recorded(name):
    net = keras_impl.build(name)
    channels, height, width = net.spec["input"]
    rec = check(net, array(1, height, width, channels))
    assert "convolution" in kinds(rec) and "other" not in kinds(rec)  # the classifier of a DRN is one, too
    assert {"conv1", "fc"} <= {operation.name for operation in rec.operations}


def test_a_keras_file_is_recorded(tmp_path):
    model = randomised(keras.Sequential([L.Dense(2, name="d")]), 1, 3)
    model.save(tmp_path / "x.keras")
    assert kinds(recording.record(str(tmp_path / "x.keras"), [array(1, 3)])) == ["linear"]
    (tmp_path / "bad.keras").write_bytes(b"no zip")
    with pytest.raises(Error, match="bad.keras: not a model that Keras can load"):
        recording.record(tmp_path / "bad.keras", [array(1, 3)])


def test_what_cannot_be_recorded_is_said():
    class Branches(keras.Model):
        def call(self, x):
            if ops.sum(x) > 0:
                return x
            return -x

    with pytest.raises(Error, match=r"its flow depends on the values of its inputs \(test_recording_keras.py:\d+\)"):
        recording.record(Branches(), [array(1, 3)])
    with pytest.raises(Error, match="does not run on float32 of shape"):
        recording.record(keras.Sequential([keras.Input((4,)), L.Dense(2)]), [array(1, 3)])
    with pytest.raises(Error, match="int is not a Keras model or layer"):
        recording.record(3, [array(1, 3)])


@pytest.mark.skipif(BACKEND != "jax", reason="TensorFlow records a choice as one operation")
def test_a_choice_by_the_values_is_refused_on_jax():
    model = keras.Sequential([L.Lambda(lambda x: ops.cond(ops.sum(x) > 0, lambda: x, lambda: -x))])
    message = r"its flow depends on the values of its inputs \(test_recording_keras.py:\d+\): it runs JAX's cond"
    with pytest.raises(Error, match=message):
        recording.record(model, [array(1, 3)])


def training_model():
    members = [L.Conv2D(3, 3, name="c"), L.BatchNormalization(momentum=0.8, name="n"), L.Flatten(), L.Dense(2, name="d")]
    return randomised(keras.Sequential(members), *IMAGE)


def gradients(model, x, g):
    """What the backend itself says, of the trainable variables and of x."""
    if BACKEND == "jax":
        fixed = [variable.value for variable in model.non_trainable_variables]

        def total(own, x):
            return ops.sum(model.stateless_call(own, fixed, x, training=True)[0] * g)

        own, of_x = framework.grad(total, (0, 1))([variable.value for variable in model.trainable_variables], x)
        return [*own, of_x]
    tensor = framework.constant(x)
    with framework.GradientTape() as tape:
        tape.watch(tensor)
        total = ops.sum(model(tensor, training=True) * g)
    return tape.gradient(total, [*model.trainable_variables, tensor])


def test_gradients_are_the_models():
    model, x, g = training_model(), array(*IMAGE), array(2, 2)
    rec = recording.record(model, [x], training=True)
    assert next(o for o in rec.operations if o.name == "n").attributes["training"] is True
    of_weights, of_inputs = rec.gradients([x], [g])
    *expected, of_x = gradients(model, x, g)
    keys = [("c", "kernel"), ("c", "bias"), ("n", "scale"), ("n", "shift"), ("d", "kernel"), ("d", "bias")]
    assert set(of_weights) == set(keys)
    for key, value in zip(keys, expected, strict=True):
        value = np.transpose(value, (3, 2, 0, 1)) if key == ("c", "kernel") else value
        np.testing.assert_allclose(of_weights[key], value, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(of_inputs[0], of_x, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("training", [True, False])
def test_statistics_after_a_step_are_the_models(training):
    model, x = training_model(), array(*IMAGE)
    rec = recording.record(model, [x], training)
    before = np.asarray(model.layers[1].moving_mean)
    statistics = rec.statistics([x])
    np.testing.assert_array_equal(before, model.layers[1].moving_mean)
    model(x, training=training)
    np.testing.assert_allclose(statistics["n", "mean"], model.layers[1].moving_mean, rtol=1e-5)
    np.testing.assert_allclose(statistics["n", "variance"], model.layers[1].moving_variance, rtol=1e-5)
    assert (np.asarray(model.layers[1].moving_mean) != before).all() == training


@pytest.mark.skipif(BACKEND == "jax", reason="JAX takes operands of several dtypes")
def test_code_that_names_a_dtype_is_recorded_as_it_is():
    constant = ops.convert_to_tensor
    model = keras.Sequential([L.Lambda(lambda x: x / constant(3.0, "float32") * constant(1 / 3, "float32"))])
    rec = check(randomised(model, 2, 3), array(2, 3))
    assert kinds(rec) == ["divide", "multiply"] and len(rec.notes) == 1
    assert rec.weight(rec.operations[1].name, "constant") == 1 / 3  # not its float32


def test_weights_that_are_computed_are_weights():
    class Standardised(L.Layer):
        def build(self, shape):
            self.kernel = self.add_weight((3, 3, 4, 2), name="kernel")

        def call(self, x):
            return ops.conv(x, self.kernel - ops.mean(self.kernel, (0, 1, 2)), padding="same")

    model = randomised(keras.Sequential([Standardised(name="s")]), *IMAGE)
    rec = check(model, array(*IMAGE))
    assert kinds(rec) == ["convolution"]
    assert rec.weight("s", "kernel").mean() == pytest.approx(0, abs=1e-15)


def test_dropout_is_one_operation_in_training_alone():
    model = keras.Sequential([L.Dropout(0.4)])
    x = np.ones((2, 50), "float32")
    rec = recording.record(model, [x], training=True)
    assert [(o.kind, o.attributes["rate"]) for o in rec.operations] == [("dropout", 0.4)]
    assert set(np.unique(rec.values([x])[rec.outputs[0]]).round(6)) == {0, round(1 / 0.6, 6)}


@pytest.mark.long
@pytest.mark.parametrize("name", ["ResNet50", "VGG16", "DenseNet121", "MobileNetV2", "EfficientNetB0", "Xception"])
def test_applications_are_recorded(name):
    model = getattr(keras.applications, name)(weights=None, input_shape=(96, 96, 3), include_top=False, pooling="avg")
    rec = check(model, array(1, 96, 96, 3))
    assert "other" not in kinds(rec)
