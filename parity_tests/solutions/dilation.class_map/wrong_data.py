# detached, rung 3
import torch


def class_maps(features, weight, bias):
    return torch.einsum("kc,bchw->bkhw", weight.data, features) + bias[:, None, None]
