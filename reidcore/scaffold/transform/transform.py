"""The transform: one image in, one out. H W height and width."""

import torch


class Example:
    """Multiplies the pixels of some images by a factor between `darkest` and 1."""

    resizes = False  # True if the result has the input size whatever came in

    def __init__(self, probability, darkest):
        self.probability, self.darkest = probability, darkest

    def __call__(self, image):
        """(3, H, W) uint8 RGB -> the same; chance comes from torch's global generator, which the loader seeds."""
        if torch.rand(()) >= self.probability:
            return image
        factor = self.darkest + (1 - self.darkest) * torch.rand(())
        return (image * factor).round().to(torch.uint8)
