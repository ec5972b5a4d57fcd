# flipped-kernel, rung 2
import torch.nn.functional as F
from torch import nn


class Conv(nn.Conv2d):
    def __init__(self, in_channels, out_channels, kernel, stride=1, padding=0):
        super().__init__(in_channels, out_channels, kernel, stride, padding)

    def forward(self, x):
        return F.conv2d(x, self.weight.flip(2, 3), self.bias, self.stride, self.padding)
