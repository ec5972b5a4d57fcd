# relu, rung 2
import torch


def class_maps(features, weight, bias):
    return torch.relu(torch.einsum("kc,bchw->bkhw", weight, features) + bias[:, None, None])
