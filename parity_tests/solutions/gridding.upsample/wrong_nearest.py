# nearest, rung 2
import torch.nn.functional as F


def upsample(maps):
    return F.interpolate(maps, scale_factor=8, mode="nearest")
