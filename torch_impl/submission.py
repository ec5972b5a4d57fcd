"""Code of a reader's, run for `twins check`: a PyTorch layer, function or optimiser, in NumPy arrays with PyTorch's axes.

The same interface as in the other package. All is in float64.
"""

import contextlib
import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

FRAMEWORK = "PyTorch"
LAYER, OPTIMIZER = nn.Module, torch.optim.Optimizer
LAYER_NAME, OPTIMIZER_NAME = "nn.Module", "torch.optim.Optimizer"
OPTIMIZERS = torch.optim  # where they are
RATE = "lr"  # what an optimiser calls its learning rate


@contextlib.contextmanager
def double() -> Iterator[None]:
    """New tensors are float64 in this context."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


class Layer:
    """A layer; the images are (batch, channels, height, width)."""

    def __init__(self, make: Callable[[], Any], images: np.ndarray) -> None:
        self.layer = make().double()

    def state(self) -> dict[str, np.ndarray]:
        """{name: array} of all weights and running statistics."""
        return {name: array(tensor) for name, tensor in self._tensors().items()}

    def trainable(self) -> set[str]:
        """The names of the weights that are trained."""
        return {name for name, weight in self.layer.named_parameters() if weight.requires_grad}

    def load(self, state: dict[str, np.ndarray]) -> None:
        """Set the weights and running statistics, all or some."""
        with torch.no_grad():
            for name, tensor in self._tensors().items():
                if name in state:
                    tensor.copy_(torch.from_numpy(np.array(state[name])))

    def output(self, images: np.ndarray, training: bool) -> np.ndarray:
        """The output for a batch."""
        self.layer.train(training)
        with torch.no_grad():
            return array(self.layer(torch.from_numpy(images.copy())))

    def gradients(self, images: np.ndarray, projection: np.ndarray) -> dict[str, np.ndarray]:
        """{name: gradient} of the sum of output times projection, in training, with that of the images as "input"."""
        self.layer.train()
        self.layer.zero_grad()
        leaf = torch.from_numpy(images.copy()).requires_grad_()
        output = self.layer(leaf.clone())  # which the layer may overwrite, as in a network
        if output.requires_grad:
            (output * torch.from_numpy(projection)).sum().backward()
        tensors = {"input": leaf, **dict(self.layer.named_parameters())}
        return {name: array(torch.zeros_like(t) if t.grad is None else t.grad) for name, t in tensors.items()}

    def _tensors(self) -> dict[str, Tensor]:
        return {name: t for name, t in self.layer.state_dict().items() if not name.endswith("num_batches_tracked")}


def call(
    function: Callable[..., Any], arguments: Sequence[Any], layouts: Sequence[str], projection: np.ndarray | None = None,
    layout: str = "",
) -> tuple[list[np.ndarray], dict[int, np.ndarray]]:  # fmt: skip
    """([outputs], {number of an argument: gradient}) of a function of arrays and numbers.

    Gradients, of the sum of output times `projection`, are taken if that is given. Layouts are what arrays and outputs are:
    "map", "kernel", "linear" or "", which says what their axes are in another framework.
    """
    tensors = [torch.from_numpy(a.copy()) if isinstance(a, np.ndarray) else a for a in arguments]
    leaves = {n: t for n, t in enumerate(tensors) if isinstance(t, Tensor) and t.is_floating_point()}
    for leaf in leaves.values():
        leaf.requires_grad_(projection is not None)
    result = function(*tensors)
    outputs = [array(o) for o in (result if isinstance(result, (tuple, list)) else [result])]
    if projection is None or outputs[0].shape != projection.shape or not getattr(result, "requires_grad", False):
        return outputs, {}
    (result * torch.from_numpy(projection)).sum().backward()
    return outputs, {n: array(torch.zeros_like(t) if t.grad is None else t.grad) for n, t in leaves.items()}


def draw(function: Callable[..., Any], shape: tuple[int, ...]) -> np.ndarray:
    """The kernel that a function draws, for a shape (out, in, height, width)."""
    return array(function(tuple(shape)))


def optimise(
    optimizer: Callable[..., Any], options: dict[str, Any], weights: Sequence[np.ndarray],
    gradients: Sequence[Sequence[np.ndarray]], rates: Sequence[float],
) -> list[list[np.ndarray]]:  # fmt: skip
    """The weights after each step, with these gradients and learning rates."""
    parameters = [nn.Parameter(torch.from_numpy(weight.copy())) for weight in weights]
    running = optimizer(parameters, rates[0], **options)
    steps = []
    for rate, arrays in zip(rates, gradients, strict=True):
        for group in running.param_groups:
            group["lr"] = rate
        for parameter, gradient in zip(parameters, arrays, strict=True):
            parameter.grad = torch.from_numpy(gradient.copy())
        running.step()
        steps.append([array(parameter) for parameter in parameters])
    return steps


def settings(optimizer: Callable[..., Any], given: dict[str, Any], rate: float) -> dict[str, Any]:
    """All settings of an optimiser, those that are not given at their defaults."""
    return dict(optimizer([nn.Parameter(torch.zeros(1))], rate, **given).defaults)


def options(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """What an optimiser would be made with anew: the settings of its first group of parameters."""
    accepted = inspect.signature(type(optimizer)).parameters
    return {name: value for name, value in optimizer.param_groups[0].items() if name in accepted and name != "params"}


def array(value: Any) -> np.ndarray:
    """A tensor, or what NumPy takes for an array, as an array of its own."""
    if value is None or isinstance(value, tuple):
        missing = ": is there a return missing?" if value is None else ""
        raise TypeError(f"it returns {'None' if value is None else 'several values'}, expected a tensor{missing}")
    return value.detach().cpu().numpy().copy() if isinstance(value, Tensor) else np.array(value)
