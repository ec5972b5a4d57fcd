"""What the engine leaves to PyTorch: gradients. Nothing is compiled, as in PyTorch's own engine without --compile."""

import contextlib
import importlib
from collections.abc import Mapping
from typing import Any

import keras

import shared

from .engine import Engine, Function
from .layers import Tensor

# What Keras runs on. PyTorch's twin is no part of it, and nothing else in this package needs PyTorch.
torch: Any = importlib.import_module(keras.backend.backend())


class TorchEngine(Engine):
    """`Engine` on Keras's torch backend, on the GPU if PyTorch has one.

    It trains on one device and compiles nothing: raises `shared.Error` if it is to compile. For several devices and for
    speed there is `torch_impl.Engine`.
    """

    framework = "Keras on PyTorch"
    activations = torch.no_grad()(Engine.activations)
    dense_class_maps = torch.no_grad()(Engine.dense_class_maps)

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        if self._compiled:
            raise shared.Error("Keras on PyTorch does not compile: --compile is for the backends torch, tf and jax")

    def _inference(self, function: Function) -> Function:
        return torch.no_grad()(function)

    def _updating(self, function: Function, repeated: bool = False) -> Function:
        return self._inference(function)

    def _training(self, function: Function) -> Function:
        return self._inference(function)

    def _derivatives(
        self, function: Function, images: Tensor, variables: Mapping[str, keras.Variable], of_images: bool = False
    ) -> tuple[Any, Tensor | None, dict[str, Tensor | None]]:
        trained = {name: variable.value for name, variable in variables.items() if variable.trainable}
        with torch.enable_grad():
            loss, others = function(images.requires_grad_(of_images))
        sources = [*([images] if of_images else []), *trained.values()]
        found = list(torch.autograd.grad(loss, sources, allow_unused=True))
        of_input = found.pop(0) if of_images else None
        others = keras.tree.map_structure(torch.Tensor.detach, others)
        return others, of_input, dict.fromkeys(variables) | dict(zip(trained, found, strict=True))

    def _input_gradients(self, function: Function, images: Tensor) -> dict[str, Tensor]:
        with torch.enable_grad():
            values = function(images.requires_grad_())
        return {name: torch.autograd.grad(value, images, retain_graph=True)[0] for name, value in values.items()}


def devices(count: int | None) -> contextlib.AbstractContextManager[Any]:
    """The context in which a network is built. Raises `shared.Error` for several devices."""
    if count and count > 1:
        raise shared.Error(f"--devices is {count}, but Keras on PyTorch trains on one device")
    return contextlib.nullcontext()
