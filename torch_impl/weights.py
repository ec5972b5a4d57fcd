"""The weights of a PyTorch network as NumPy arrays, and back."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from shared.weights import State, as_arrays, check_state


def state(net: nn.Module) -> State:
    """{name: array} of all weights and running statistics, under PyTorch's names, in its layouts; bfloat16 as float32."""
    tensors = _tensors(net)
    wide = {name: tensor.float() if tensor.dtype == torch.bfloat16 else tensor for name, tensor in tensors.items()}
    return {name: tensor.detach().cpu().numpy().copy() for name, tensor in wide.items()}  # NumPy has no bfloat16


def load(net: nn.Module, state: Mapping[str, Any] | Iterable[tuple[str, Any]]) -> None:
    """Set the weights and running statistics of a network to a state, converted to the network's precision.

    The values are arrays or tensors of any framework, on any device; pairs of names and values do as well as a mapping.
    Raises one `shared.Error` that lists every missing, unexpected and misshapen name; the network is then unchanged.
    """
    tensors, arrays = _tensors(net), as_arrays(state)
    check_state(arrays, {name: tuple(tensor.shape) for name, tensor in tensors.items()})
    # Copied into PyTorch's own memory, which starts at a multiple of 64 bytes: in NumPy's, oneDNN is slower.
    new = {name: torch.tensor(np.ascontiguousarray(arrays[name]), dtype=tensor.dtype) for name, tensor in tensors.items()}
    net.load_state_dict(new, assign=any(tensor.is_meta for tensor in tensors.values()))


def _tensors(net: nn.Module) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in net.state_dict().items() if not name.endswith("num_batches_tracked")}
