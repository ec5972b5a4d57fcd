"""The map that `twins diff` writes, applied by `twins convert`: from networks under other names, in both directions."""

import json

import numpy as np
import pytest
from torch import nn

import keras_impl
import torch_impl  # before Keras
import twins
from shared import networks, weights
from shared.reading import Naming
from twins import checkpoints, ladder

import keras  # isort: skip
import torch  # isort: skip
import torchvision  # isort: skip
from keras import layers  # isort: skip

pytestmark = pytest.mark.long


class Wrapped(nn.Module):
    """torchvision's ResNet-18 under other names."""

    def __init__(self):
        super().__init__()
        self.backbone = torchvision.models.resnet18(num_classes=10)

    def forward(self, x):
        return self.backbone(x)


def listing():
    """The zoo's `lenet` in Keras, with names of its own and a map flattened in Keras's order."""
    x = image = keras.Input((28, 28, 1))
    x = layers.MaxPooling2D(2)(layers.Conv2D(6, 3, padding="same", name="low")(x))
    x = layers.MaxPooling2D(2)(layers.Conv2D(16, 5, name="high")(x))
    x = layers.Dense(84, name="second")(layers.Dense(120, name="first")(layers.Flatten()(x)))
    return keras.Model(image, layers.Dense(10, name="out")(x))


def moved(a, b, source, destination, network, shape, classes=None):
    """Convert the file of A by the map of A and B."""
    report = twins.diff(a, b, input=shape)
    assert report.same
    path = source.parent / "map.json"
    path.write_text(json.dumps({move["from"]: move["to"] for move in report.map}))
    return checkpoints.convert(source, destination, network, Naming(None, (), path), classes)


def test_weights_of_a_torchvision_network_under_other_names_go_into_keras(tmp_path):
    torch.manual_seed(0)
    module = Wrapped().eval()
    for norm in (part for part in module.modules() if isinstance(part, nn.BatchNorm2d)):
        nn.init.uniform_(norm.running_mean, -0.5, 0.5)
        nn.init.uniform_(norm.running_var, 0.5, 2)
    torch.save(module.state_dict(), tmp_path / "mine.pth")
    spec = networks.variant(networks.load("resnet18"), 10, None)
    twin = keras_impl.layers.construct(keras_impl.Network, spec, "float64")
    moved(module, twin, tmp_path / "mine.pth", tmp_path / "resnet18.weights.h5", "resnet18", (3, 64, 64))
    twin.load_weights(tmp_path / "resnet18.weights.h5")
    x = np.random.default_rng(0).standard_normal((2, 3, 64, 64))
    ours, theirs = module.double()(torch.from_numpy(x)).detach().numpy(), np.asarray(twin(x.transpose(0, 2, 3, 1)))
    assert ladder.relative(ours, theirs) < 1e-10


def test_weights_of_a_keras_model_with_a_flattened_map_go_into_pytorch(tmp_path):
    keras.utils.set_random_seed(0)
    model = listing()
    model.save(tmp_path / "mine.keras")
    net = torch_impl.build("lenet", dtype="float64").eval()
    moved(model, net, tmp_path / "mine.keras", tmp_path / "lenet.safetensors", "lenet", (1, 28, 28))
    torch_impl.load(net, weights.read_state(tmp_path / "lenet.safetensors"))
    x = np.random.default_rng(0).standard_normal((2, 1, 28, 28))
    theirs = np.asarray(model(x.transpose(0, 2, 3, 1).astype("float32")))
    assert ladder.relative(net(torch.from_numpy(x)).detach().numpy(), theirs) < 1e-5
