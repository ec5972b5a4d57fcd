"""Batch norms folded into the convolutions in front of them: the same function in evaluation mode, with fewer layers.

States are as in `weights.py`.
"""

from collections import Counter

import numpy as np

from . import shapes, weights
from .spec import BLOCKS


def folded(spec, state):
    """The spec and the state of a network without the batch norms that stand directly behind a convolution.

    Each is a factor of the convolution's kernel and a part of its bias, computed in float64, in the precision of the arrays.
    Raises `Error` where the state does not fit the spec.
    """
    rows, new_spec = shapes.layers(spec), folded_spec(spec)
    weights.check_state(state, shapes.weights(rows))
    if new_spec is spec:
        return spec, state
    old, new = (shapes.leaves(shapes.layers(other)) for other in (_without_norms(spec), new_spec))
    names = {before.name: after.name for before, after in zip(old, new, strict=True)}
    arrays = {}
    for leaf in shapes.leaves(rows):
        if leaf.name in names:
            last = names[leaf.name]
            arrays |= {name.replace(leaf.name, last, 1): state[name] for name in leaf.weights}
        else:
            _fold(arrays, last, leaf, state)
    return new_spec, arrays


def folded_spec(spec):
    """The spec of the folded network, or the spec itself where there is nothing to fold.

    Some batch norms stay: those behind an addition, a pool or an activation.
    """
    found = _without_norms(spec)
    if len(batch_norms(found)) == len(batch_norms(spec)):
        return spec
    members, layers = Counter(), []
    for layer in found["layers"]:  # the members of a group count up from 0
        group, dot, _ = layer["name"].partition(".")
        layers.append(layer | {"name": f"{group}.{members[group]}"} if dot else layer)
        members[group] += 1
    called = {"name": f"{spec['name']}_folded"}
    called |= {"title": f"{spec['title']}, batch norms folded"} if "title" in spec else {}
    kept = {key: value for key, value in found.items() if key not in ("parameters", "weights")}
    return kept | called | {"layers": layers}


def batch_norms(spec):
    """The names of all batch norms of a network."""
    return [leaf.name for leaf in shapes.leaves(shapes.layers(spec)) if leaf.type == "batch_norm"]


def _without_norms(spec):
    """The spec without what can be folded, else as it was: groups lack the numbers of what is gone."""
    found = []
    for layer in spec["layers"]:
        if layer["type"] == "batch_norm" and found and found[-1]["type"] == "conv":
            found[-1] = found[-1] | {"bias": True}
        elif layer["type"] in BLOCKS and layer.get("norm", True):
            options = BLOCKS[layer["type"]][1].split()
            kept = {key: value for key, value in layer.items() if key not in ("eps", "momentum")}
            found.append(kept | {"norm": False} | ({"bias": True} if "bias" in options else {}))
        else:
            found.append(layer)
    return spec | {"layers": found}


def _fold(arrays, conv, norm, state):
    """Put a batch norm, a leaf of `shapes`, into the kernel and the bias of a convolution."""
    kernel = arrays[f"{conv}.weight"]
    weight, bias, mean, variance = (state[name].astype(np.float64) for name in norm.weights)
    scale = weight / np.sqrt(variance + norm.eps)
    shift = bias + (arrays.get(f"{conv}.bias", 0) - mean) * scale
    arrays[f"{conv}.weight"] = (kernel * scale[:, None, None, None]).astype(kernel.dtype)
    arrays[f"{conv}.bias"] = shift.astype(kernel.dtype)
