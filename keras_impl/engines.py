"""The engine of the backend that Keras runs on, and what trains a network by a recipe with it."""

import contextlib
import importlib
from typing import Any

import keras

from shared import recipes
from shared.recipes import Recipe
from shared.spec import Spec

from . import engine
from .layers import named_layers
from .network import build

Engine: Any = engine.Engine  # which says that its backend has none
of_devices: Any = contextlib.nullcontext  # the context in which a network is built for so many devices

if keras.backend.backend() == "tensorflow":
    _of_backend = importlib.import_module(".tensorflow_engine", __package__)
    Engine, of_devices = _of_backend.TensorFlowEngine, _of_backend.devices
elif keras.backend.backend() == "jax":
    _of_backend = importlib.import_module(".jax_engine", __package__)
    Engine, of_devices = _of_backend.JaxEngine, _of_backend.devices
elif keras.backend.backend() == "torch":
    _of_backend = importlib.import_module(".torch_engine", __package__)
    Engine, of_devices = _of_backend.TorchEngine, _of_backend.devices


def trainer(spec: Spec, recipe: Recipe, compiled: bool = False, devices: int | None = None) -> engine.Engine:
    """An engine that trains a new network by a recipe, as `shared.recipes.load` gives it, on the GPU if there is one.

    With `devices`, that many GPUs, or parts of the CPU, share each batch. Raises `shared.Error` if there are fewer GPUs, and on
    PyTorch, where one device trains.
    If the environment variable TF_CONFIG names several workers, it is the engine of this one, on all its GPUs or on its CPU;
    it waits for the others. The backend may not have run anything in this process before.
    """
    with of_devices(devices):
        net = build(spec, recipe["seed"], recipe["precision"])
        layers = dict(named_layers(net))
        for name in recipes.kept(recipe, spec):
            layers[name].trainable = False
    options = recipes.engine_options(recipe)
    if keras.backend.backend() == "jax":
        options |= {"devices": devices}  # TensorFlow's variables know theirs
    made = Engine(net, recipe["optimizer"], recipe["seed"], compiled, **options)
    if "thaw" in recipe:
        made.freeze(recipes.frozen(recipe, spec))
    return made
