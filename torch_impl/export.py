"""Networks for other programs, written by PyTorch."""

import torch

import shared

from .network import build
from .weights import load


def onnx(path, spec, state):
    """Write a network as ONNX: from "images" (batch, channels, height, width) to "logits", with the batch of any size."""
    net = build(spec)
    load(net, state)
    images = torch.zeros(2, *spec["input"])  # PyTorch takes a batch of 1 for a constant
    shapes = ({0: torch.export.Dim("batch")},)
    try:
        program = torch.onnx.export(
            net.eval(), (images,), input_names=["images"], output_names=["logits"], dynamic_shapes=shapes,
            dynamo=True, verbose=False,
        )  # fmt: skip
    except Exception as error:  # the exporter's errors have no common name
        reason = str(error).strip().partition("\n")[0]
        raise shared.Error(f"{spec['name']} cannot be written as ONNX: {reason}") from None
    for node in program.model.graph:
        node.metadata_props.clear()  # where in this machine's files the code of each is
    program.save(path, external_data=False)
