"""The recorders of both frameworks on the same network: the same operations in the same order, and the same values."""

import numpy as np
import pytest

import keras_impl
import torch_impl
from keras_impl import recording as of_keras

of_torch = pytest.importorskip("torch_impl.recording")

MOVES = {"pad", "slice", "transpose", "reshape", "dropout", "cast"}  # one framework writes them out where the other has none


def told(rec):
    """What the operations are, with what both frameworks say alike."""
    operations = []
    for o in rec.operations:
        told = {
            k: o.attributes.get(k) for k in ("function", "stride", "dilation", "groups", "how", "over", "epsilon", "momentum")
        }
        if o.kind not in MOVES and set(o.attributes.get("window", ())) != {1}:
            operations.append((o.kind, told, set(o.weights)))
    return operations


LONG = ("resnet18", "drn_c_26", "googlenet", "alexnet", "vgg11_bn", "preact_resnet18", "resnext50_32x4d")


@pytest.mark.parametrize("name", ["lenet", "resnet20", *(pytest.param(name, marks=pytest.mark.long) for name in LONG)])
def test_twins_are_told_alike(name):
    nets = torch_impl.build(name), keras_impl.build(name)
    x = np.random.default_rng(0).normal(size=(1, *nets[0].spec["input"])).astype("float32")
    y = x.transpose(0, 2, 3, 1)
    a, b = of_torch.record(nets[0].eval(), [x]), of_keras.record(nets[1], [y])
    assert told(a) == told(b)
    ours, theirs = a.values([x])[a.outputs[0]], b.values([y])[b.outputs[0]]
    for rec, images, result in ((a, x, ours), (b, y, theirs)):
        alone = rec.values([images], rec.outputs)
        assert list(alone) == rec.outputs and np.array_equal(alone[rec.outputs[0]], result)
    np.testing.assert_allclose(theirs, ours, rtol=0, atol=1e-11 * np.abs(ours).max())
    weights = [[(o.name, role) for o in rec.operations for role in sorted(o.weights)] for rec in (a, b)]
    for mine, yours in zip(*weights, strict=True):
        if np.ndim(a.weight(*mine)) != 2:  # a flattened map comes in another order
            np.testing.assert_array_equal(a.weight(*mine), b.weight(*yours))
