"""`twins.diff` of whole networks that are the same function: no false alarm."""

import gc
import subprocess
import sys
from pathlib import Path

import pytest
from applications_in_torch import PORTS
from test_networks import DIVISORS, TORCHVISION, narrowed
from torch import nn

import keras_impl
import shared
import torch_impl  # before Keras
import twins
from shared import weights

import keras  # isort: skip
import torch  # isort: skip
import torchvision  # isort: skip

pytestmark = pytest.mark.long

# {network of the zoo: pixels a side}: one a family and each kind of block.
FAMILIES = {
    "lenet": 28, "lenet5": 32, "lenet_caffe": 28, "mnist_residual": 28, "cifar10_resnet": 32, "resnet20": 32, "plain20": 32,
    "inception_a_cifar": 32, "preact_resnet18": 32, "preact_resnet50": 32, "resnet110_exclusive_gate": 32,
    "resnet110_relu_only_preactivation": 32, "resnet18_gray": 64, "resnet34": 64, "resnet50_v1": 64, "resnet50_keras": 64,
    "resnext50_32x4d": 64, "wide_resnet50_2": 64, "drn_a_18": 64, "drn_a_50": 64, "drn_b_26": 64, "drn_c_26": 64,
    "drn_d_22": 64, "drn_c_26_seg": 64, "drn_d_22_seg": 64, "vgg11_bn": 32, "vgg13": 32, "googlenet": 64,
}  # fmt: skip
LIBRARY = {"resnet18": 64, "resnet50": 64, "vgg16": 32, "googlenet_bn": 64, "alexnet": 64}


def stirred(module):
    """A module with statistics and weights of batch norms that are not those of a new one, in evaluation."""
    torch.manual_seed(0)
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            for values, low, high in (
                (part.running_mean, -0.5, 0.5),
                (part.running_var, 0.5, 2),
                (part.weight, 0.5, 2),
                (part.bias, -0.5, 0.5),
            ):
                nn.init.uniform_(values, low, high)
    return module.eval()


def shallow(spec):
    """A spec with no more than two blocks in a row: a third is matched as the second is, and 110 layers take minutes."""
    layers = [layer | ({"repeat": min(layer["repeat"], 2)} if "repeat" in layer else {}) for layer in spec["layers"]]
    return {key: value for key, value in spec.items() if key != "parameters"} | {"layers": layers}


def check(a, b, channels, pixels):
    gc.collect()
    report = twins.diff(a, b, input=(channels, pixels, pixels))
    assert [(f.operations, f.attribute, f.values) for f in report.findings] == []
    assert report.outputs < 1e-10 and report.same


@pytest.mark.parametrize("name", FAMILIES)
def test_twins_are_the_same_function(name):
    spec = shared.load(name)
    spec = shallow(narrowed(spec) if name in DIVISORS or name.startswith("vgg") else spec)
    module, model = (package.layers.construct(package.Network, spec, "float64") for package in (torch_impl, keras_impl))
    torch_impl.load(module, weights.randomised(weights.initial(spec)))
    keras_impl.load(model, weights.initial(spec, seed=1))
    check(module.eval(), model, spec["input"][0], FAMILIES[name])


@pytest.mark.parametrize("name", LIBRARY)
def test_torchvision_is_the_same_function_as_ours_in_keras(name):
    theirs, options = TORCHVISION[name]
    module = stirred(getattr(torchvision.models, theirs)(weights=None, **options))
    check(module, keras_impl.build(name, seed=1), 3, LIBRARY[name])


@pytest.mark.parametrize("name", PORTS)
def test_a_port_is_the_same_function_as_keras_applications(name):
    port, pixels = PORTS[name]
    logits = {"classifier_activation": None} if name == "VGG16" else {}
    model = getattr(keras.applications, name)(weights=None, input_shape=(pixels, pixels, 3), classes=10, **logits)
    check(stirred(port(10, pixels)), model, 3, pixels)


MEMORY = """
import re
from pathlib import Path
import twins
from twins import backends

def kilobytes(key):  # of this program: what getrusage calls the peak has that of the process that started it
    return int(re.search(rf"{key}:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

packages = backends.start(backends.Backend.BOTH)
before = kilobytes("VmRSS")
nets = [package.build("resnet50", seed=0, dtype="float64") for package in packages]
both = kilobytes("VmRSS") - before
assert twins.diff(*nets).same
print((kilobytes("VmHWM") - before) / both)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="what a process holds is read from Linux's /proc")
def test_memory_is_within_four_times_that_of_both_networks():
    done = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert done.returncode == 0, done.stderr
    assert 1 < float(done.stdout) < 4
