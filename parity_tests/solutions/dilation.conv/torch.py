from torch import nn


class DilatedConv(nn.Conv2d):
    def __init__(self, in_channels, out_channels, kernel, dilation):
        padding = dilation * (kernel - 1) // 2
        super().__init__(in_channels, out_channels, kernel, padding=padding, dilation=dilation, bias=False)
