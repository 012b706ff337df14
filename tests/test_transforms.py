"""Transforms of one image."""

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from reidcore.builtin import transforms as configs
from reidcore.builtin.modules.transforms import ColorJitter, Flip, PadCrop, RandomErasing, RandomResizedCrop, Resize
from reidcore.errors import DataError

HEIGHT, WIDTH = 24, 16
TRANSFORMS: dict[str, Callable[[Tensor], Tensor]] = {
    "resize": Resize(HEIGHT, WIDTH),
    "resize-bilinear": Resize(HEIGHT, WIDTH, "bilinear"),
    "flip": Flip(1.0),
    "flip-at-times": Flip(0.5),
    "pad-crop": PadCrop(HEIGHT, WIDTH, padding=4, fill=7),
    "resized-crop": RandomResizedCrop(HEIGHT, WIDTH, (0.2, 1.0), (0.75, 1.3333)),
    "jitter": ColorJitter(1.0, 0.2, 0.2, 0.2, 0.1),
    "jitter-at-times": ColorJitter(0.5, 0.2, 0.2, 0.0, 0.0),
    "erasing-mean": RandomErasing(1.0, (0.02, 0.33), (0.3, 3.3), "mean"),
    "erasing-random": RandomErasing(1.0, (0.02, 0.33), (0.3, 3.3), "random"),
    "erasing-zero": RandomErasing(1.0, (0.02, 0.33), (0.3, 3.3), "zero"),
}
every = pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)


def noise(height: int = HEIGHT, width: int = WIDTH, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def seeded(transform: Callable[[Tensor], Tensor], image: Tensor, seed: int) -> Tensor:
    torch.manual_seed(seed)
    return transform(image)


def erased(result: Tensor, image: Tensor) -> tuple[slice, slice]:
    """Return the rows and columns of the smallest rectangle that holds every changed pixel."""
    rows, columns = (result != image).any(0).nonzero(as_tuple=True)
    return slice(int(rows.min()), int(rows.max()) + 1), slice(int(columns.min()), int(columns.max()) + 1)


@every
def test_the_result_is_a_uint8_image_of_the_input_size(transform: Callable[[Tensor], Tensor]) -> None:
    for seed in range(10):
        result = seeded(transform, noise(), seed)
        assert (result.dtype, tuple(result.shape)) == (torch.uint8, (3, HEIGHT, WIDTH))


@every
def test_the_image_that_came_in_is_not_changed(transform: Callable[[Tensor], Tensor]) -> None:
    image = noise()
    for seed in range(10):
        seeded(transform, image, seed)
        assert torch.equal(image, noise())


@every
def test_the_same_seed_gives_the_same_result(transform: Callable[[Tensor], Tensor]) -> None:
    for seed in range(10):
        assert torch.equal(seeded(transform, noise(), seed), seeded(transform, noise(), seed))


@pytest.mark.parametrize("name", ["flip-at-times", "pad-crop", "erasing-mean", "erasing-random"])
def test_another_seed_gives_another_result(name: str) -> None:
    results = [seeded(TRANSFORMS[name], noise(), seed) for seed in range(10)]
    assert any(not torch.equal(result, results[0]) for result in results)


@pytest.mark.parametrize("transform", [Flip(0.0), RandomErasing(0.0, (0.02, 0.33), (0.3, 3.3), "zero")])
def test_probability_0_is_never(transform: Callable[[Tensor], Tensor]) -> None:
    assert all(torch.equal(seeded(transform, noise(), seed), noise()) for seed in range(50))


@pytest.mark.parametrize("transform", [Flip(1.0), RandomErasing(1.0, (0.02, 0.33), (0.3, 3.3), "random")])
def test_probability_1_is_always(transform: Callable[[Tensor], Tensor]) -> None:
    assert not any(torch.equal(seeded(transform, noise(), seed), noise()) for seed in range(50))


def test_a_probability_between_is_kept_to() -> None:
    torch.manual_seed(0)
    flip = Flip(0.3)
    # 2000 draws: the standard deviation is sqrt(0.3 · 0.7 / 2000), about 0.01
    assert sum(not torch.equal(flip(noise()), noise()) for _ in range(2000)) / 2000 == pytest.approx(0.3, abs=0.04)


def test_a_flip_mirrors_left_to_right() -> None:
    image = torch.tensor([[[1, 2, 3], [4, 5, 6]]] * 3, dtype=torch.uint8)
    assert Flip(1.0)(image)[0].tolist() == [[3, 2, 1], [6, 5, 4]]


def test_a_crop_is_a_window_of_the_padded_image() -> None:
    image = noise()
    padded = torch.full((3, HEIGHT + 8, WIDTH + 8), 7, dtype=torch.uint8)
    padded[:, 4:-4, 4:-4] = image
    places = set()
    for seed in range(400):
        result = seeded(PadCrop(HEIGHT, WIDTH, 4, 7), image, seed)
        found = [
            (top, left)
            for top in range(9)
            for left in range(9)
            if torch.equal(padded[:, top : top + HEIGHT, left : left + WIDTH], result)
        ]
        assert len(found) == 1
        places.add(found[0])
    assert {top for top, _ in places} == {left for _, left in places} == set(range(9))


def test_a_larger_image_is_cropped_to_the_input_size() -> None:
    assert PadCrop(8, 6, 2, 0)(noise()).shape == (3, 8, 6)


def test_an_image_too_small_to_crop_from_is_an_error_that_says_what_to_do() -> None:
    with pytest.raises(DataError, match=r"an image of 24x16 pixels, too small to crop 64x32 from; place 'resize'"):
        PadCrop(64, 32, 10, 0)(noise())


@pytest.mark.parametrize(
    ("area", "ratio"), [((0.02, 0.33), (0.3, 3.3)), ((0.2, 0.2), (1.0, 1.0)), ((0.05, 0.1), (2, 4))]
)
def test_an_erased_rectangle_has_area_and_ratio_within_bounds(
    area: tuple[float, float], ratio: tuple[float, float]
) -> None:
    image = noise(64, 48)
    seen = []
    for seed in range(200):
        result = seeded(RandomErasing(1.0, area, ratio, "random"), image, seed)
        rows, columns = erased(result, image)
        h, w = rows.stop - rows.start, columns.stop - columns.start
        # height and width are rounded: each may be half a pixel off
        assert (h - 0.5) * (w - 0.5) <= area[1] * 64 * 48 and (h + 0.5) * (w + 0.5) >= area[0] * 64 * 48
        assert (h - 0.5) / (w + 0.5) <= ratio[1] and (h + 0.5) / (w - 0.5) >= ratio[0]
        seen.append(h * w / (64 * 48))
    assert max(seen) - min(seen) >= 0.6 * (area[1] - area[0])


def test_erased_rectangles_reach_every_corner() -> None:
    image = noise(20, 20)
    erase = RandomErasing(1.0, (0.1, 0.3), (0.5, 2.0), "random")
    changed = torch.zeros(20, 20, dtype=torch.bool)
    for seed in range(300):
        changed |= (seeded(erase, image, seed) != image).any(0)
    assert changed.all()


@pytest.mark.parametrize(("fill", "colour"), [("mean", [124, 116, 104]), ("zero", [0, 0, 0])])
def test_an_erased_rectangle_has_one_colour(fill: Literal["mean", "zero"], colour: list[int]) -> None:
    image = torch.full((3, 40, 30), 255, dtype=torch.uint8)
    result = seeded(RandomErasing(1.0, (0.2, 0.3), (0.5, 2.0), fill), image, 3)
    rows, columns = erased(result, image)
    assert (result[:, rows, columns] == torch.tensor(colour, dtype=torch.uint8)[:, None, None]).all()


def test_an_erased_rectangle_of_noise_has_all_values() -> None:
    image = torch.zeros(3, 100, 100, dtype=torch.uint8)
    result = seeded(RandomErasing(1.0, (0.3, 0.3), (1.0, 1.0), "random"), image, 0)
    rows, columns = erased(result, image)
    values = result[:, rows, columns].double()
    # uniform over 0..255: mean 127.5, and 3 · 3000 draws
    assert values.mean().item() == pytest.approx(127.5, abs=4)
    assert len(values.unique()) == 256


def test_a_rectangle_that_cannot_fit_erases_nothing() -> None:
    image = noise(40, 4)
    assert torch.equal(seeded(RandomErasing(1.0, (0.9, 0.9), (0.1, 0.1), "zero"), image, 0), image)


@pytest.mark.parametrize(
    ("interpolation", "code"), [("bicubic", Image.Resampling.BICUBIC), ("bilinear", Image.Resampling.BILINEAR)]
)
@pytest.mark.parametrize(("height", "width"), [(64, 48), (10, 9), (100, 16), (23, 40)])
def test_resizing_equals_pillows(
    interpolation: Literal["bicubic", "bilinear"], code: Any, height: int, width: int
) -> None:
    image = noise(height, width)
    expected = Image.fromarray(image.permute(1, 2, 0).numpy()).resize((WIDTH, HEIGHT), code)
    found = Resize(HEIGHT, WIDTH, interpolation)(image).permute(1, 2, 0).numpy()
    assert np.abs(found.astype(int) - np.asarray(expected, dtype=int)).max() <= 1


def test_resizing_to_the_same_size_changes_nothing() -> None:
    assert torch.equal(Resize(HEIGHT, WIDTH)(noise()), noise())


def test_resizing_transforms_give_the_input_size_whatever_came_in() -> None:
    built = {item.name: item.config().build(HEIGHT, WIDTH) for item in configs.reidcore_transforms()}
    assert {name: part.resizes for name, part in built.items()} == {
        "resize": True,
        "flip": False,
        "pad-crop": False,
        "random-resized-crop": True,
        "color-jitter": False,
        "random-erasing": False,
    }
    for name in ("resize", "random-resized-crop"):
        assert built[name](noise(50, 50)).shape == (3, HEIGHT, WIDTH)


@pytest.mark.parametrize("name", ["area", "ratio"])
def test_bounds_in_the_wrong_order_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=rf"{name}: found 0.5 above 0.2; expected the smaller one first"):
        configs.RandomErasing(**{name: (0.5, 0.2)})


def test_the_resized_crop_is_a_part_of_the_asked_size_and_shape() -> None:
    ramp = torch.arange(200)[:, None].expand(200, 100).to(torch.uint8)
    image = torch.stack([ramp, torch.arange(100)[None].expand(200, 100).to(torch.uint8), ramp])
    crop = RandomResizedCrop(200, 100, (0.25, 0.36), (0.8, 1.25))
    shares, ratios = [], []
    for seed in range(200):
        result = seeded(crop, image, seed).double()
        height = (result[0].max() - result[0].min()).item() / 199
        width = (result[1].max() - result[1].min()).item() / 99
        shares.append(height * width)
        ratios.append(width / height)
    assert 0.23 < min(shares) < 0.27
    assert 0.34 < max(shares) < 0.38
    assert 0.76 < min(ratios) < 0.85
    assert 1.18 < max(ratios) < 1.31


def test_jitter_of_no_probability_or_of_no_amount_changes_nothing() -> None:
    for jitter in (ColorJitter(0.0, 0.5, 0.5, 0.5, 0.5), ColorJitter(1.0, 0.0, 0.0, 0.0, 0.0)):
        assert torch.equal(seeded(jitter, noise(), 1), noise())


def test_jitter_of_brightness_is_one_factor_for_all_pixels() -> None:
    image = torch.full((3, HEIGHT, WIDTH), 100, dtype=torch.uint8)
    values = [seeded(ColorJitter(1.0, 0.2, 0.0, 0.0, 0.0), image, seed).unique() for seed in range(50)]
    assert all(len(value) == 1 for value in values)
    assert 80 <= min(map(int, values)) < 86
    assert 114 < max(map(int, values)) <= 120


def test_a_crop_larger_than_the_image_shows_all_of_it_smaller_with_its_edges_extended() -> None:
    image = torch.full((3, 100, 100), 200, dtype=torch.uint8)
    image[:, :, 50:] = 100  # the edges are 200 on the left and 100 on the right
    image[:, 30:70, 30:70] = 0
    crop = RandomResizedCrop(200, 200, (4.0, 4.0), (1.0, 1.0))  # as large as the rectangle, so nothing is interpolated
    centres = []
    for seed in range(20):
        result = seeded(crop, image, seed)
        rows, columns = (result == 0).all(0).nonzero(as_tuple=True)
        top, left = int(rows.min()), int(columns.min())
        assert (result[:, top : top + 40, left : left + 40] == 0).all() and len(rows) == 1600
        assert (result[:, :top, : left + 20] == 200).all() and (result[:, :top, left + 20 :] == 100).all()
        assert (result[:, :, :left] == 200).all() and (result[:, :, left + 40 :] == 100).all()
        centres.append(rows.float().mean().item())
    assert min(centres) < 80
    assert max(centres) > 120
