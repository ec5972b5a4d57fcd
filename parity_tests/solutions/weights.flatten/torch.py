import torch


def to_keras(weight, channels, height, width):
    return torch.reshape(weight, (-1, channels, height, width)).permute(2, 3, 1, 0).flatten(0, 2)
