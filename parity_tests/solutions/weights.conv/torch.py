import torch  # noqa: F401


def to_keras(weight):
    return weight.permute(2, 3, 1, 0)
