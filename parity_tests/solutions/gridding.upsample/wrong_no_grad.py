# detached, rung 3
import torch
import torch.nn.functional as F


def upsample(maps):
    with torch.no_grad():
        return F.interpolate(maps, scale_factor=8, mode="bilinear", align_corners=False)
