"""Outside oracles: torchvision's own networks, with random weights and randomised statistics, in float64."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision

import keras_impl
import torch_impl
from shared import compare, weights

BOUNDS = compare.BOUNDS["float64"]

# Ours, and torchvision's call for the same function.
TORCHVISION = {
    "resnet18": ("resnet18", {}),
    "resnet34": ("resnet34", {}),
    "resnet50": ("resnet50", {}),
    "resnet101": ("resnet101", {}),
    "resnet152": ("resnet152", {}),
    "drn_a_50": ("resnet50", {"replace_stride_with_dilation": [False, True, True]}),
}


@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvision(name):
    function, options = TORCHVISION[name]
    torch.manual_seed(0)
    theirs = getattr(torchvision.models, function)(weights=None, **options).double()
    state = {key: array.numpy() for key, array in theirs.state_dict().items()}
    state = weights.randomised(state)
    theirs.load_state_dict({key: torch.from_numpy(np.asarray(array)) for key, array in state.items()})

    ours = torch_impl.build(name, dtype="float64")
    ours.load_state_dict(theirs.state_dict(), strict=True)
    twin = keras_impl.build(name, dtype="float64")
    keras_impl.load(twin, state)

    generator = np.random.default_rng(0)
    images, labels = generator.standard_normal((3, 3, 65, 71)), generator.integers(0, 1000, 3)
    engines = torch_impl.Engine(ours), keras_impl.Engine(twin)
    with torch.no_grad():
        logits = theirs.eval()(torch.from_numpy(images)).numpy()
    for engine in engines:
        assert compare.relative(logits, engine.predict(images)) <= BOUNDS["activations"], engine.framework

    F.cross_entropy(theirs.train()(torch.from_numpy(images)), torch.from_numpy(labels)).backward()
    gradients = {key: parameter.grad.numpy() for key, parameter in theirs.named_parameters()}
    for engine in engines:
        found = engine.gradients(images, labels)
        found.pop("input")
        assert found.keys() == gradients.keys()
        for key, gradient in gradients.items():
            assert compare.relative(gradient, found[key]) <= BOUNDS["gradients"], (engine.framework, key)
        state = engine.state()
        for key, array in theirs.state_dict().items():
            if ".running_" in key:
                assert compare.relative(array.numpy(), state[key]) <= BOUNDS["statistics"], (engine.framework, key)


def test_the_papers_resnet50_differs_from_torchvisions():
    # The same weights fit both, and the stride alone makes another function of them.
    state = weights.initial("resnet50")
    images = np.random.default_rng(0).standard_normal((1, 3, 64, 64))
    logits = []
    for name in ("resnet50", "resnet50_v1"):
        net = torch_impl.build(name, dtype="float64")
        torch_impl.load(net, state)
        logits.append(torch_impl.Engine(net).predict(images))
    assert compare.relative(*logits) > 0.01
