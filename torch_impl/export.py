"""Networks for other programs, written by PyTorch."""

from pathlib import Path

import torch

import shared
from shared.spec import Spec
from shared.weights import State

from .network import build
from .weights import load


def onnx(path: str | Path, spec: Spec, state: State) -> None:
    """Write a network as ONNX: from "images" (batch, channels, height, width) to "logits", for batches of any size.

    Raises `shared.Error` if PyTorch cannot export the network.
    """
    net = build(spec, dtype="float32")
    load(net, state)
    images = torch.zeros(2, *spec["input"])  # PyTorch would take a batch size of 1 for a constant
    shapes = ({0: torch.export.Dim("batch")},)
    try:
        program = torch.onnx.export(
            net.eval(), (images,), input_names=["images"], output_names=["logits"], dynamic_shapes=shapes,
            dynamo=True, verbose=False,
        )  # fmt: skip
    except Exception as error:  # the exporter's errors have no common class
        reason = str(error).strip().partition("\n")[0]
        raise shared.Error(f"{spec['name']} cannot be written as ONNX: {reason}") from None
    for node in program.model.graph:
        node.metadata_props.clear()  # paths of source files on this machine
    program.save(path, external_data=False)
