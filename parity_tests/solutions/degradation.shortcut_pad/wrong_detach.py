# detached, rung 3
import torch.nn.functional as F
from torch import nn


class Shortcut(nn.Module):
    def __init__(self, in_channels, out_channels, stride):
        super().__init__()
        self.before = (out_channels - in_channels) // 2
        self.after = out_channels - in_channels - self.before
        self.stride = stride

    def forward(self, x):
        return F.pad(x.detach()[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.before, self.after))
