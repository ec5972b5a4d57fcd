# pytorch-default, rung 2
from torch import nn


def initialise(shape):
    return nn.Conv2d(shape[1], shape[0], shape[2]).weight
