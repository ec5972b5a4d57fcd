"""Batch norms folded into the convolutions before them: the same function in evaluation mode, with fewer layers.

States are as in `weights.py`.
"""

from collections import Counter

import numpy as np

from . import shapes, weights
from .spec import BLOCKS, Spec
from .weights import State


def folded(spec: Spec, state: State) -> tuple[Spec, State]:
    """The spec and the state of a network without the batch norms that come directly after a convolution.

    Each becomes a factor of the convolution's kernel and a part of its bias, computed in float64 and stored in the kernel's
    precision. Raises `Error` if the state does not fit the spec.
    """
    rows, new_spec = shapes.layers(spec), folded_spec(spec)
    weights.check_state(state, shapes.weights(rows))
    if new_spec is spec:
        return spec, state
    old_leaves, new_leaves = (shapes.leaves(shapes.layers(other)) for other in (_without_norms(spec), new_spec))
    new_names = {old.name: new.name for old, new in zip(old_leaves, new_leaves, strict=True)}
    arrays: State = {}
    conv = ""
    for leaf in shapes.leaves(rows):
        if leaf.name in new_names:
            conv = new_names[leaf.name]
            arrays |= {name.replace(leaf.name, conv, 1): state[name] for name in leaf.weights}
        else:
            _fold(arrays, conv, leaf, state)
    return new_spec, arrays


def folded_spec(spec: Spec) -> Spec:
    """The spec of the folded network, called NAME_folded, or the spec itself if there is nothing to fold.

    Batch norms after an addition, a pool or an activation stay.
    """
    reduced = _without_norms(spec)
    if len(batch_norms(reduced)) == len(batch_norms(spec)):
        return spec
    sizes: Counter[str] = Counter()
    layers = []
    for layer in reduced["layers"]:  # the members of a group count up from 0
        group, dot, _ = layer["name"].partition(".")
        layers.append(layer | {"name": f"{group}.{sizes[group]}"} if dot else layer)
        sizes[group] += 1
    names = {"name": f"{spec['name']}_folded"}
    names |= {"title": f"{spec['title']}, batch norms folded"} if "title" in spec else {}
    rest = {key: value for key, value in reduced.items() if key not in ("parameters", "weights")}
    return rest | names | {"layers": layers}


def batch_norms(spec: Spec) -> list[str]:
    """The names of all batch norms of a network, those inside blocks included."""
    return [leaf.name for leaf in shapes.leaves(shapes.layers(spec)) if leaf.type == "batch_norm"]


def _without_norms(spec: Spec) -> Spec:
    """The spec without what can be folded, otherwise unchanged: the members of a group are not renumbered."""
    layers: list[dict] = []
    for layer in spec["layers"]:
        if layer["type"] == "batch_norm" and layers and layers[-1]["type"] == "conv":
            layers[-1] = layers[-1] | {"bias": True}
        elif layer["type"] in BLOCKS and layer.get("norm", True):
            options = BLOCKS[layer["type"]][1].split()
            rest = {key: value for key, value in layer.items() if key not in ("eps", "momentum")}
            layers.append(rest | {"norm": False} | ({"bias": True} if "bias" in options else {}))
        else:
            layers.append(layer)
    return spec | {"layers": layers}


def _fold(arrays: State, conv: str, norm: shapes.Row, state: State) -> None:
    """Put a batch norm, a leaf of `shapes`, into the kernel and the bias of a convolution among the new `arrays`."""
    kernel = arrays[f"{conv}.weight"]
    weight, bias, mean, variance = (state[name].astype(np.float64) for name in norm.weights)
    assert norm.eps is not None
    scale = weight / np.sqrt(variance + norm.eps)
    shift = bias + (arrays.get(f"{conv}.bias", 0) - mean) * scale
    arrays[f"{conv}.weight"] = (kernel * scale[:, None, None, None]).astype(kernel.dtype)
    arrays[f"{conv}.bias"] = shift.astype(kernel.dtype)
