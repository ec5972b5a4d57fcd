import torch


def initialise(shape):
    return torch.nn.init.kaiming_normal_(torch.empty(shape), mode="fan_out", nonlinearity="relu")
