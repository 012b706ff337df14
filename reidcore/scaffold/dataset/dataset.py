"""The lists of samples. Images that are files are `Sample(Path(...), identity, camera)`; these draw themselves."""

import colorsys

from attrs import frozen
from PIL import Image
from reidcore.types import Sample, Splits


@frozen
class Square:
    """A square of an identity's colour, on a camera's background, at an image's place."""

    hue: float
    camera: int
    number: int

    @property
    def name(self):
        """What messages and reports call it."""
        return f"square {self.hue:.3f} camera {self.camera} number {self.number}"

    def open(self):
        """Return the image, of any size, in RGB."""
        image = Image.new("RGB", (32, 32), (60 + 80 * self.camera,) * 3)
        colour = tuple(round(255 * value) for value in colorsys.hsv_to_rgb(self.hue, 1, 1))
        image.paste(colour, (4 + 3 * self.number, 6, 20 + 3 * self.number, 26))
        return image


def splits(identities):
    """Return images to train on, and of other identities queries and the gallery to find them in."""

    def samples(first, cameras):
        return [
            Sample(Square(hue=identity / (2 * identities), camera=camera, number=number), identity, camera)
            for identity in range(first, 2 * identities, 2)
            for camera in cameras
            for number in range(3)
        ]

    return Splits(train=samples(0, (0, 1)), query=samples(1, (0,)), gallery=samples(1, (0, 1)))
