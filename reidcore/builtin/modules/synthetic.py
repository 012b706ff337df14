"""Person-like figures, drawn when they are opened: a data set that needs no download.

Body, clothes, hair, bag and hat come from the identity; scene, light, colour cast, viewpoint, blur and noise
from the camera; pose, framing and occluders from the image. Few clothing colours are shared by many people
and the camera decides most of a pixel's value, so that colours alone do not tell who it is.

Lengths on a figure are in units of its standing height, 0 at the top of the head and 1 at the soles.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args

import numpy as np
from attrs import frozen
from PIL import Image, ImageDraw, ImageFilter

from reidcore.types import Sample, Splits

if TYPE_CHECKING:
    from numpy.typing import NDArray

T = TypeVar("T")
Colour = tuple[int, int, int]
Point = tuple[float, float]
Domain = Literal["street", "night", "snow", "indoor"]

DOMAINS: tuple[Domain, ...] = get_args(Domain)

_FINE = 2  # figures are drawn this much larger and averaged down: smooth edges
_PERSON, _CAMERA, _IMAGE, _OCCLUDER = range(4)  # what a stream of random numbers is for

_CLOTH: Mapping[str, Colour] = {
    "black": (28, 28, 32),
    "white": (232, 232, 228),
    "grey": (130, 132, 136),
    "navy": (32, 42, 92),
    "blue": (52, 104, 196),
    "red": (190, 36, 44),
    "green": (46, 130, 70),
    "yellow": (226, 194, 52),
    "beige": (204, 180, 140),
    "brown": (110, 72, 44),
    "pink": (222, 130, 164),
    "purple": (112, 58, 140),
}
_SKIN: Sequence[Colour] = ((242, 208, 182), (224, 178, 144), (184, 132, 96), (132, 88, 60), (86, 56, 40))
_HAIR: Sequence[Colour] = ((24, 20, 20), (72, 46, 30), (120, 78, 44), (206, 170, 104), (150, 146, 142))
_EVERYDAY = dict.fromkeys(_CLOTH, 1.0)


@frozen
class _Look:
    """What a domain changes: scenery, the cameras' ranges, and how people dress there."""

    walls: Sequence[Colour]
    grounds: Sequence[Colour]
    things: Sequence[Colour]
    exposure: tuple[float, float]
    cast: float
    tint: Colour
    haze: tuple[float, float]
    saturation: tuple[float, float]
    uneven: float
    noise: tuple[float, float]
    blur: tuple[float, float]
    pitch: tuple[float, float]
    tops: Mapping[str, float]
    bottoms: Mapping[str, float]
    garments: Mapping[str, float]
    long_sleeves: float
    coats: float
    hats: float
    flakes: int = 0


_LOOKS: Mapping[Domain, _Look] = {
    "street": _Look(
        walls=(
            (150, 140, 128),
            (176, 110, 84),
            (96, 112, 124),
            (104, 130, 82),
            (196, 190, 176),
            (120, 150, 190),
        ),
        grounds=((104, 104, 106), (148, 144, 136), (124, 116, 100), (96, 112, 72)),
        things=((60, 64, 70), (150, 60, 50), (56, 92, 60), (210, 200, 180), (70, 96, 140), (190, 160, 80)),
        exposure=(0.8, 1.2),
        cast=0.1,
        tint=(255, 255, 255),
        haze=(0, 25),
        saturation=(0.7, 1.1),
        uneven=0.3,
        noise=(2, 7),
        blur=(0, 0.8),
        pitch=(0, 0.5),
        tops=_EVERYDAY,
        bottoms=_EVERYDAY | {"black": 2.5, "navy": 2.5, "blue": 2, "pink": 0.4, "purple": 0.4},
        garments={"trousers": 0.6, "shorts": 0.2, "skirt": 0.2},
        long_sleeves=0.5,
        coats=0.12,
        hats=0.2,
    ),
    "night": _Look(
        walls=((40, 40, 52), (70, 56, 44), (30, 44, 60), (84, 74, 60)),
        grounds=((44, 44, 48), (62, 56, 50), (36, 42, 54)),
        things=((250, 220, 150), (200, 70, 60), (80, 130, 220), (20, 22, 28), (130, 250, 190)),
        exposure=(0.5, 0.75),
        cast=0.14,
        tint=(255, 212, 160),
        haze=(8, 20),
        saturation=(0.35, 0.6),
        uneven=0.6,
        noise=(9, 18),
        blur=(0.5, 1.3),
        pitch=(0, 0.5),
        tops=_EVERYDAY | {"black": 4, "navy": 3, "grey": 3, "white": 2},
        bottoms=_EVERYDAY | {"black": 6, "navy": 5},
        garments={"trousers": 0.8, "shorts": 0.08, "skirt": 0.12},
        long_sleeves=0.75,
        coats=0.25,
        hats=0.25,
    ),
    "snow": _Look(
        walls=((214, 218, 226), (188, 196, 208), (168, 160, 156), (224, 224, 228), (110, 128, 116)),
        grounds=((236, 238, 244), (222, 228, 238), (204, 208, 214)),
        things=((84, 100, 88), (90, 72, 58), (150, 156, 168), (176, 80, 66), (240, 242, 246)),
        exposure=(0.85, 1.15),
        cast=0.08,
        tint=(216, 232, 255),
        haze=(50, 85),
        saturation=(0.45, 0.75),
        uneven=0.25,
        noise=(2, 6),
        blur=(0.3, 1.2),
        pitch=(0, 0.4),
        tops=_EVERYDAY | {"black": 3, "navy": 2, "red": 2, "white": 0.3},
        bottoms=_EVERYDAY | {"black": 5, "grey": 3},
        garments={"trousers": 0.97, "shorts": 0.0, "skirt": 0.03},
        long_sleeves=1.0,
        coats=0.55,
        hats=0.7,
        flakes=70,
    ),
    "indoor": _Look(
        walls=((226, 216, 190), (206, 210, 200), (190, 174, 150), (236, 234, 226), (164, 188, 180)),
        grounds=((196, 184, 164), (160, 128, 92), (210, 208, 202), (120, 116, 110)),
        things=(
            (130, 86, 52),
            (200, 60, 60),
            (60, 120, 170),
            (240, 220, 90),
            (90, 160, 110),
            (246, 246, 240),
        ),
        exposure=(0.85, 1.15),
        cast=0.07,
        tint=(255, 244, 196),
        haze=(0, 25),
        saturation=(0.8, 1.2),
        uneven=0.3,
        noise=(4, 10),
        blur=(0.2, 1.0),
        pitch=(0.6, 1.1),
        tops=_EVERYDAY | {"white": 3, "pink": 2, "beige": 2, "black": 0.5},
        bottoms=_EVERYDAY | {"beige": 3, "blue": 3, "white": 2, "grey": 2},
        garments={"trousers": 0.45, "shorts": 0.25, "skirt": 0.3},
        long_sleeves=0.25,
        coats=0.0,
        hats=0.06,
    ),
}


@frozen
class Setting:
    """What all figures of one data set have in common; see `splits`."""

    height: int
    width: int
    occluded: float
    domain: Domain
    seed: int

    @property
    def place(self) -> int:
        """The domain as a number that is the same in every process."""
        return zlib.crc32(self.domain.encode())


@frozen
class Figure:
    """A drawing of one person by one camera; a `Picture`. Equal figures open to equal pixels."""

    setting: Setting
    split: str
    identity: int
    camera: int
    number: int

    @property
    def name(self) -> str:
        """Such as "synthetic/train/0012_c3_0002"."""
        return f"synthetic/{self.split}/{self.identity:04d}_c{self.camera}_{self.number:04d}"

    @property
    def occluded(self) -> bool:
        """Whether something hides a part of the person."""
        return self._dice(_OCCLUDER).chance(self.setting.occluded)

    def open(self) -> Image.Image:
        """Draw it: an RGB image of the setting's size."""
        return _draw(self)

    def _dice(self, purpose: int) -> _Dice:
        return _Dice(self.setting.seed, purpose, self.setting.place, self.identity, self.camera, self.number)


def splits(
    *,
    identities: int,
    test_identities: int,
    cameras: int,
    images: int,
    height: int,
    width: int,
    occluded: float,
    domain: Domain,
    seed: int,
) -> Splits:
    """List the figures of a data set; none is drawn.

    Every person is seen `images` times by each camera. People to train on have even numbers and people to
    test on odd ones, so that changing how many there are of one leaves the others as they were. The first
    image of a test person by each camera is a query, the rest is the gallery.

    Raises:
        ValueError: A number is out of its range, or the domain is not one of `DOMAINS`.
    """
    least = {
        "identities": (identities, 1),
        "test_identities": (test_identities, 1),
        "cameras": (cameras, 2),
        "images": (images, 2),
        "height": (height, 16),
        "width": (width, 8),
        "seed": (seed, 0),
    }
    for name, (value, bound) in least.items():
        if value < bound:
            raise ValueError(f"{name} is {value}; expected at least {bound}")
    if not 0 <= occluded <= 1:
        raise ValueError(f"occluded is {occluded}; expected a share between 0 and 1")
    if domain not in DOMAINS:
        raise ValueError(f"domain is {domain!r}; expected one of {', '.join(DOMAINS)}")

    setting = Setting(height, width, occluded, domain, seed)

    def figures(split: str, people: range, numbers: range) -> tuple[Sample, ...]:
        return tuple(
            Sample(Figure(setting, split, person, camera, number), person, camera)
            for person in people
            for camera in range(cameras)
            for number in numbers
        )

    tested = range(1, 2 * test_identities, 2)
    return Splits(
        train=figures("train", range(0, 2 * identities, 2), range(images)),
        query=figures("query", tested, range(1)),
        gallery=figures("gallery", tested, range(1, images)),
    )


class _Dice:
    """Random choices that depend on nothing but the numbers of `key`."""

    def __init__(self, *key: int) -> None:
        self.generator = np.random.default_rng(list(key))
        self._random = self.generator.random

    def between(self, low: float, high: float) -> float:
        return low + (high - low) * self._random()

    def chance(self, probability: float) -> bool:
        return self._random() < probability

    def pick(self, choices: Sequence[T]) -> T:
        return choices[int(self._random() * len(choices))]

    def weigh(self, weights: Mapping[str, float]) -> str:
        left = self._random() * sum(weights.values())
        for choice, weight in weights.items():
            left -= weight
            if left < 0:
                return choice
        return choice

    def near(self, colour: Colour, spread: float) -> Colour:
        red, green, blue = (min(255, max(0, int(part + self.between(-spread, spread)))) for part in colour)
        return red, green, blue


def _shade(colour: Colour, factor: float) -> Colour:
    return int(colour[0] * factor), int(colour[1] * factor), int(colour[2] * factor)


# -- who -----------------------------------------------------------------------------------------------------


@frozen
class _Person:
    """What stays the same on every image of a person; `side` of the bag is 1 for left and -1 for right."""

    build: float
    hips: float
    skin: Colour
    hair: Colour
    long_hair: bool
    pattern: str
    top: Colour
    second: Colour
    long_sleeves: bool
    hem: float
    garment: str
    bottom: Colour
    shoes: Colour
    bag: str
    bag_colour: Colour
    side: int
    hat: str
    hat_colour: Colour


_PATTERNS = {
    "plain": 0.3,
    "stripes": 0.15,
    "bars": 0.1,
    "checks": 0.1,
    "dots": 0.08,
    "logo": 0.1,
    "two-tone": 0.12,
    "open": 0.1,
}
_BAGS = {"none": 0.4, "backpack": 0.24, "handbag": 0.18, "shoulder bag": 0.18}
_HATS = {"cap": 0.4, "beanie": 0.4, "brim": 0.2}
_OCCLUDERS = ("barrier", "post", "passer-by", "crop")


def _person(dice: _Dice, look: _Look) -> _Person:
    # All draw the same number of lots: a look biases a trait, and leaves the traits after it alone.
    top = dice.weigh(look.tops)
    second = dice.weigh({name: 1.0 for name in _CLOTH if name != top})
    hips = dice.between(0.47, 0.53)
    coat, short = dice.chance(look.coats), dice.between(-0.02, 0.05)
    sleeves, hatted = dice.chance(look.long_sleeves), dice.chance(look.hats)
    hat = dice.weigh(_HATS)
    return _Person(
        build=dice.between(0.9, 1.3),
        hips=hips,
        skin=dice.pick(_SKIN),
        hair=dice.pick(_HAIR),
        long_hair=dice.chance(0.35),
        pattern=dice.weigh(_PATTERNS),
        top=dice.near(_CLOTH[top], 12),
        second=dice.near(_CLOTH[second], 12),
        long_sleeves=sleeves or coat,
        hem=hips + (0.2 if coat else short),
        garment=dice.weigh(look.garments),
        bottom=dice.near(_CLOTH[dice.weigh(look.bottoms)], 12),
        shoes=dice.near(_CLOTH[dice.pick(("black", "white", "brown", "red", "blue"))], 12),
        bag=dice.weigh(_BAGS),
        bag_colour=dice.near(_CLOTH[dice.pick(tuple(_CLOTH))], 12),
        side=1 if dice.chance(0.5) else -1,
        hat=hat if hatted else "none",
        hat_colour=dice.near(_CLOTH[dice.pick(tuple(_CLOTH))], 12),
    )


# -- where ---------------------------------------------------------------------------------------------------


@frozen(eq=False)
class _Camera:
    """What stays the same on every image of a camera.

    scene: larger than the image, at drawing size; mix: (3, 3), from true colours to seen ones;
    light: (H, W, 1); noise: (2H, 2W, 3), of which a window is added; turn: how people mostly stand to it, in
    radians, 0 is facing it; pitch: how much it looks down, 0 is from the front.
    """

    scene: Image.Image
    mix: NDArray[Any]
    light: NDArray[Any]
    haze: float
    noise: NDArray[Any]
    blur: float
    turn: float
    pitch: float


@lru_cache(maxsize=32)
def _camera(setting: Setting, number: int) -> _Camera:
    look = _LOOKS[setting.domain]
    dice = _Dice(setting.seed, _CAMERA, setting.place, number)
    height, width = setting.height, setting.width
    scene = _scene(dice, look, 2 * width * _FINE, height * 5 // 4 * _FINE)
    grey = dice.between(*look.saturation)
    gains = [part / 255 * math.exp(dice.between(-look.cast, look.cast)) for part in look.tint]
    mix = (grey * np.eye(3) + (1 - grey) * np.full((3, 3), 1 / 3)) * gains * dice.between(*look.exposure)
    down, right = np.mgrid[-0.5 : 0.5 : height * 1j, -0.5 : 0.5 : width * 1j]
    slopes = dice.between(-look.uneven, look.uneven), dice.between(-look.uneven, look.uneven)
    light = 1 + slopes[0] * down + slopes[1] * right
    noise = dice.generator.standard_normal((2 * height, 2 * width, 3)) * dice.between(*look.noise)
    return _Camera(
        scene=scene,
        mix=mix.astype(np.float32),
        light=light[..., None].astype(np.float32),
        haze=dice.between(*look.haze),
        noise=noise.astype(np.float32),
        blur=dice.between(*look.blur) * height / 128,
        turn=dice.between(0, 2 * math.pi),
        pitch=dice.between(*look.pitch),
    )


def _scene(dice: _Dice, look: _Look, width: int, height: int) -> Image.Image:
    """A wall with things on it, and a ground with lines."""
    image = Image.new("RGB", (width, height), dice.near(dice.pick(look.walls), 20))
    draw = ImageDraw.Draw(image)
    horizon = height * dice.between(0.35, 0.7)
    columns = int(dice.between(4, 9))
    motif = dice.near(dice.pick(look.things), 20)
    if dice.chance(0.5):  # windows, tiles or shelves
        across, down = width / columns, horizon / dice.between(2, 5)
        for row in range(5):
            for column in range(columns):
                x, y = (column + 0.2) * across, (row + 0.2) * down
                draw.rectangle((x, y, x + 0.6 * across, y + 0.6 * down), motif)
    draw.rectangle((0, horizon, width, height), dice.near(dice.pick(look.grounds), 16))
    for _ in range(columns):
        colour = dice.near(dice.pick(look.things), 20)
        x, y = width * dice.between(0, 1), horizon * dice.between(0.95, 1.1)
        across, up = width * dice.between(0.01, 0.09), height * dice.between(0.1, 0.5)
        shape = draw.ellipse if dice.chance(0.4) else draw.rectangle
        shape((x - across, y - up, x + across, y), colour)
    line = dice.near(dice.pick(look.grounds), 60)
    slant = dice.between(-0.8, 0.8) * width
    for column in range(-columns, 2 * columns):
        x = column * width / columns
        draw.line((x, horizon, x + slant, height), line, int(1 + width * 0.012))
    return image.filter(ImageFilter.GaussianBlur(height / 128))


# -- the drawing ---------------------------------------------------------------------------------------------


def _draw(figure: Figure) -> Image.Image:
    setting = figure.setting
    look = _LOOKS[setting.domain]
    camera = _camera(setting, figure.camera)
    height, width = setting.height * _FINE, setting.width * _FINE
    # What hides a person has dice of its own, so that it changes nothing else on the image.
    dice, hidden = figure._dice(_IMAGE), figure._dice(_OCCLUDER)
    occluder = hidden.pick(_OCCLUDERS) if hidden.chance(setting.occluded) else "none"

    left = int(dice.between(0.2, 0.8) * (camera.scene.width - width))
    top = int(dice.between(0, 1) * (camera.scene.height - height))
    image = camera.scene.crop((left, top, left + width, top + height))
    draw = ImageDraw.Draw(image)

    x, size = dice.between(0.43, 0.57) * width, dice.between(0.86, 1.0) * height
    y = dice.between(0, 1) * (height - size) + dice.between(-0.02, 0.02) * height
    if occluder == "crop":  # a detector that found a part of the body only
        size *= hidden.between(1.6, 2.1)
        y = y * 0.5 if hidden.chance(0.7) else height - 0.97 * size
    person = _person(_Dice(setting.seed, _PERSON, figure.identity), look)
    _puppet(draw, dice, person, camera, x, y, size)
    if occluder == "passer-by":
        x, size = hidden.pick((0.1, 0.9)) * width, hidden.between(1.0, 1.2) * height
        _puppet(draw, hidden, _person(hidden, look), camera, x, 0.08 * height, size)
    elif occluder in ("barrier", "post"):
        _obstacle(draw, hidden, look, occluder, width, height)

    for _ in range(look.flakes):
        x, y, radius = dice.between(0, width), dice.between(0, height), dice.between(0.003, 0.009) * height
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), (250, 250, 255))
    return _develop(image, camera, dice)


def _develop(image: Image.Image, camera: _Camera, dice: _Dice) -> Image.Image:
    """Average a drawing down and add the camera: blur, light, colour cast, haze and noise."""
    image = image.reduce(_FINE)
    if camera.blur > 0.2:
        image = image.filter(ImageFilter.GaussianBlur(camera.blur))
    height, width = image.height, image.width
    down, across = int(dice.between(0, height)), int(dice.between(0, width))
    pixels = np.asarray(image, np.float32) @ camera.mix
    pixels *= camera.light * np.float32(dice.between(0.88, 1.12))
    pixels *= np.float32(1 - camera.haze / 255)
    pixels += camera.haze
    pixels += camera.noise[down : down + height, across : across + width]
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def _obstacle(draw: ImageDraw.ImageDraw, dice: _Dice, look: _Look, kind: str, width: int, height: int) -> None:
    """Something in front: a barrier hides the legs, a post one side."""
    colour = dice.near(dice.pick(look.things), 30)
    if kind == "barrier":
        top = height * dice.between(0.45, 0.65)
        draw.rectangle((0, top, width, height), colour)
        for row in range(1, 4):
            y = top + row * height * 0.1
            draw.line((0, y, width, y), _shade(colour, 0.7), max(1, height // 64))
    else:
        across, left = width * dice.between(0.32, 0.48), dice.chance(0.5)
        draw.rectangle((0, 0, across, height) if left else (width - across, 0, width, height), colour)
        edge = across if left else width - across
        draw.line((edge, 0, edge, height), _shade(colour, 0.7), max(1, width // 16))


class _View:
    """Projects points of a body to the drawing, and draws body parts there.

    `side` is towards the person's left, `forward` where they look, `down` from the top of the head.
    """

    def __init__(self, draw: ImageDraw.ImageDraw, x: float, y: float, size: float, turn: float, pitch: float) -> None:
        self.draw, self.x, self.y, self.size, self.pitch = draw, x, y, size, pitch
        self.cos, self.sin = math.cos(turn), math.sin(turn)
        self.girth = math.hypot(self.cos, 0.62 * self.sin)  # a body is less deep than wide

    def zoom(self, down: float) -> float:
        """How large things are at a height: from above, the feet are further away."""
        return (1 + 0.3 * self.pitch) / (1 + self.pitch * down)

    def at(self, side: float, down: float, forward: float = 0.0) -> Point:
        across = (side * self.cos + forward * self.sin) * self.zoom(down)
        near = forward * self.cos - side * self.sin
        below = down * (1 + 0.6 * self.pitch) / (1 + self.pitch * down) + 0.2 * self.pitch * near
        return self.x + across * self.size, self.y + below * self.size

    def width(self, down: float) -> float:
        """Pixels a unit across a body at a height."""
        return self.girth * self.zoom(down) * self.size

    def blob(self, centre: Point, across: float, down: float, colour: Colour) -> None:
        x, y = centre
        across, down = across * self.size, down * self.size
        self.draw.ellipse((x - across, y - down, x + across, y + down), colour)

    def limb(self, start: Point, end: Point, thick: float, thin: float, colour: Colour) -> None:
        """A tapered segment with round ends."""
        (x0, y0), (x1, y1) = start, end
        length = math.hypot(x1 - x0, y1 - y0) or 1.0
        u, v = (y0 - y1) / length * self.size / 2, (x1 - x0) / length * self.size / 2
        a, b, c, d = u * thick, v * thick, u * thin, v * thin
        self.draw.polygon(((x0 - a, y0 - b), (x0 + a, y0 + b), (x1 + c, y1 + d), (x1 - c, y1 - d)), colour)
        self.blob(end, thin / 2, thin / 2, colour)


def _puppet(
    draw: ImageDraw.ImageDraw, dice: _Dice, person: _Person, camera: _Camera, x: float, y: float, size: float
) -> None:
    """Draw a person from far to near."""
    turn = camera.turn + dice.between(-0.6, 0.6) + (math.pi if dice.chance(0.2) else 0.0)
    view = _View(draw, x, y, size, turn, camera.pitch)
    stride, swing, bend = dice.between(-0.13, 0.13), dice.between(-0.1, 0.1), dice.between(0, 0.06)
    out = dice.between(0.0, 0.04)
    far = 1 if view.sin > 0 else -1  # the side of the body that is away from the camera
    profile = abs(view.sin) > 0.4

    if person.bag == "backpack" and view.cos > 0:
        _backpack(view, person)
    if profile:
        _arm(view, person, far, swing, bend, out)
    _leg(view, person, far, far * stride)
    _leg(view, person, -far, -far * stride)
    _torso(view, person)
    if person.bag == "backpack" and view.cos <= 0:
        _backpack(view, person)
    if not profile:
        _arm(view, person, far, swing, bend, out)
    _head(view, person)
    _arm(view, person, -far, -swing, bend, out)


def _leg(view: _View, person: _Person, side: int, stride: float) -> None:
    hips, build = person.hips, person.build
    colour = person.bottom if side * view.sin <= 0 else _shade(person.bottom, 0.82)
    hip = view.at(side * 0.052 * build, hips - 0.02)
    knee = view.at(side * 0.056 * build, (hips + 0.95) / 2, 0.5 * stride + 0.015)
    ankle = view.at(side * 0.06 * build, 0.95 - 0.25 * abs(stride), stride)
    toe = view.at(side * 0.07 * build, 0.985 - 0.25 * abs(stride), stride + 0.045)
    thick, thin = 0.098 * build, 0.062 * build
    bare = person.garment != "trousers"
    view.limb(knee, ankle, thin * (0.85 if bare else 1.1), thin * 0.8, person.skin if bare else colour)
    view.limb(hip, knee, thick, thin * 1.1, person.skin if person.garment == "skirt" else colour)
    view.limb(ankle, toe, 0.05, 0.04, person.shoes)


def _arm(view: _View, person: _Person, side: int, swing: float, bend: float, out: float) -> None:
    build = person.build
    shade = 1.0 if side * view.sin <= 0 else 0.82
    shoulder = view.at(side * 0.118 * build, 0.195)
    elbow = view.at(side * (0.135 * build + out), 0.335, swing * 0.5 - 0.01)
    hand = view.at(side * (0.13 * build + 1.5 * out), 0.47 - bend, swing + 2 * bend)
    sleeve = _shade(person.top, shade * 0.93)
    view.limb(elbow, hand, 0.046 * build, 0.036 * build, sleeve if person.long_sleeves else person.skin)
    view.limb(shoulder, elbow, 0.066 * build, 0.05 * build, sleeve)
    view.blob(hand, 0.02, 0.022, person.skin)
    if person.bag == "handbag" and side == person.side:
        x, y = hand
        across, top, bottom = 0.06 * view.size, y + 0.03 * view.size, y + 0.14 * view.size
        view.draw.line((x - across / 2, top, x, y, x + across / 2, top), person.bag_colour, 2)
        view.draw.rectangle((x - across, top, x + across, bottom), person.bag_colour)


class _Top:
    """The upper garment as a sheet: points on it are in shares of its width and its length."""

    def __init__(self, view: _View, person: _Person) -> None:
        self.view, self.build, self.hem = view, person.build, person.hem

    def at(self, across: float, down: float) -> Point:
        height = 0.165 + down * (self.hem - 0.165)
        half = 0.122 - 0.1 * (height - 0.165) if height < 0.4 else 0.0985 + 0.12 * (height - 0.4)  # waist at 0.4
        x, y = self.view.at(0, height)
        return x + (2 * across - 1) * half * self.build * self.view.width(height), y

    def patch(self, left: float, upper: float, right: float, lower: float, colour: Colour) -> None:
        corners = self.at(left, upper), self.at(right, upper), self.at(right, lower), self.at(left, lower)
        self.view.draw.polygon(corners, colour)

    def outline(self) -> Sequence[Point]:
        edge = ((0.24, -0.04), (0, 0.04), (0, 0.55), (0, 1), (1, 1), (1, 0.55), (1, 0.04), (0.76, -0.04))
        return [self.at(across, down) for across, down in edge]


def _torso(view: _View, person: _Person) -> None:
    top = _Top(view, person)
    low, half = (person.hips + 0.2, 0.135) if person.garment == "skirt" else (person.hips + 0.04, 0.1)
    x, y = view.at(0, low)
    half *= person.build * view.width(low)
    view.draw.polygon((top.at(0, 0.8), top.at(1, 0.8), (x + half, y), (x - half, y)), person.bottom)
    view.draw.polygon(top.outline(), person.top)
    _pattern(top, person.pattern, person.second)
    view.limb(view.at(0, 0.12), view.at(0, 0.16), 0.05, 0.06, _shade(person.skin, 0.85))
    if person.bag == "shoulder bag":
        right = person.side * view.cos > 0  # of the image
        start, (x, y) = top.at(0.15 if right else 0.85, 0), top.at(0.95 if right else 0.05, 0.95)
        view.draw.line((*start, x, y), person.bag_colour, max(2, int(0.018 * view.size)))
        across, down = 0.055 * view.size, 0.1 * view.size
        view.draw.rectangle((x - across, y - down * 0.3, x + across, y + down), person.bag_colour)
    elif person.bag == "backpack" and view.cos > 0:
        top.patch(0.14, 0, 0.24, 0.6, person.bag_colour)
        top.patch(0.76, 0, 0.86, 0.6, person.bag_colour)


def _pattern(top: _Top, pattern: str, colour: Colour) -> None:
    """Draw the second colour on the upper garment; a logo and an open jacket show on its front only."""
    front = top.view.cos > -0.2
    match pattern:
        case "stripes":
            for row in range(4):
                top.patch(0, 0.13 + 0.22 * row, 1, 0.23 + 0.22 * row, colour)
        case "bars":
            for column in range(3):
                top.patch(0.16 + 0.27 * column, 0, 0.3 + 0.27 * column, 1, colour)
        case "checks":
            for row in range(5):
                for column in range(row % 2, 4, 2):
                    top.patch(column / 4, row / 5, (column + 1) / 4, (row + 1) / 5, colour)
        case "dots":
            for row in range(5):
                for column in range(3):
                    spot = top.at(0.18 + 0.28 * column + 0.1 * (row % 2), 0.12 + 0.19 * row)
                    top.view.blob(spot, 0.013, 0.013, colour)
        case "two-tone":
            top.patch(0, 0.5, 1, 1, colour)
        case "logo" if front:
            top.patch(0.28, 0.18, 0.72, 0.5, colour)
        case "open" if front:
            top.patch(0.36, 0, 0.64, 1, colour)


def _backpack(view: _View, person: _Person) -> None:
    x, y = view.at(0, 0.19, -0.1)
    across, down = 0.09 * view.girth * person.build * view.size, 0.22 * view.size
    view.draw.rectangle((x - across, y, x + across, y + down), person.bag_colour)
    pocket = (x - 0.7 * across, y + 0.55 * down, x + 0.7 * across, y + 0.9 * down)
    view.draw.rectangle(pocket, _shade(person.bag_colour, 0.75))


def _head(view: _View, person: _Person) -> None:
    behind = view.cos < -0.2
    if person.long_hair and not behind:
        view.blob(view.at(0, 0.12, -0.02), 0.055, 0.075, person.hair)
    view.blob(view.at(0, 0.068), 0.052, 0.066, person.hair)
    if not behind:
        view.blob(view.at(0, 0.085, 0.02), 0.042, 0.052, person.skin)
    elif person.long_hair:
        view.blob(view.at(0, 0.13, -0.02), 0.056, 0.075, person.hair)
    x, y = view.at(0, 0.06)
    across, up = 0.056 * view.size, 0.07 * view.size
    if person.hat != "none":
        view.draw.chord((x - across, y - up, x + across, y + up * 0.8), 180, 360, person.hat_colour)
    if person.hat == "cap" and not behind:
        view.blob(view.at(0, 0.055, 0.05), 0.045, 0.012, _shade(person.hat_colour, 0.85))
    elif person.hat == "brim":
        view.blob((x, y), 0.1, 0.016, _shade(person.hat_colour, 0.85))
