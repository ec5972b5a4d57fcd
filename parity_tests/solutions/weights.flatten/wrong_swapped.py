# height-width-swapped, rung 2
import torch


def to_keras(weight, channels, height, width):
    return torch.reshape(weight, (-1, channels, height, width)).permute(3, 2, 1, 0).flatten(0, 2)
