"""An encoder that takes no time."""

import torch


class MeanEncoder(torch.nn.Module):
    """An encoder that costs nothing: the mean colour of each cell of a 2 x 3 grid."""

    out_channels, image_size = 3, None

    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.full((), 1 / 255))

    def forward(self, images):
        return torch.nn.functional.adaptive_avg_pool2d(images.float(), (2, 3)) * self.scale


class KnownEncoder(MeanEncoder):
    """An encoder that a captioner's file can be loaded with, once it is in `encoders.ENCODERS`."""

    def __init__(self, stride=None, image_size=None):
        super().__init__()
