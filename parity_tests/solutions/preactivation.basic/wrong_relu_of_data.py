# relu-passes-all, rung 3
from torch import nn


class PreActBasic(nn.Module):
    def __init__(self, in_channels, out_channels, stride=1):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, 1, 1, bias=False)
        self.downsample = None
        if stride > 1 or in_channels != out_channels:
            self.downsample = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)

    @staticmethod
    def relu(y):
        y.data[y < 0] = 0
        return y

    def forward(self, x):
        y = self.relu(self.bn1(x))
        shortcut = self.downsample(y) if self.downsample else x
        y = self.conv1(y)
        y = self.conv2(self.relu(self.bn2(y)))
        return y + shortcut
