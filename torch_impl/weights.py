"""The weights of a PyTorch network as NumPy arrays, and back."""

import numpy as np
import torch

from shared.weights import check_state


def state(net):
    """{name: array} of all weights and running statistics, under PyTorch's names and in its layouts."""
    tensors = _tensors(net)
    wide = {name: tensor.float() if tensor.dtype == torch.bfloat16 else tensor for name, tensor in tensors.items()}
    return {name: tensor.detach().cpu().numpy().copy() for name, tensor in wide.items()}  # NumPy has no bfloat16


def load(net, state):
    """Put a state into the network, converted to its precision.

    Raises `shared.Error`, with all of them in it, for missing, unexpected and misshapen names; the network is then unchanged.
    """
    adopt(net, {name: np.array(array) for name, array in state.items()})


def adopt(net, state):
    """`load` for arrays that nobody else holds: a network without memory of its own keeps its weights in them."""
    tensors = _tensors(net)
    check_state(state, {name: tuple(tensor.shape) for name, tensor in tensors.items()})
    new = {name: torch.from_numpy(state[name]).to(tensor.dtype) for name, tensor in tensors.items()}
    net.load_state_dict(new, assign=any(tensor.is_meta for tensor in tensors.values()))


def _tensors(net):
    return {name: tensor for name, tensor in net.state_dict().items() if not name.endswith("num_batches_tracked")}
