"""Transforms of one image."""

import random
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from reidcore.builtin import transforms as configs
from reidcore.builtin.modules.transforms import (
    Cutout,
    Flip,
    PadCrop,
    RandomErasing,
    RandomPatch,
    RandomResizedCrop,
    Resize,
)
from reidcore.errors import DataError

HEIGHT, WIDTH = 24, 16


def noise(height: int = HEIGHT, width: int = WIDTH, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def built(config: type, **options: Any) -> Callable[..., Tensor]:
    return config(**options).build(HEIGHT, WIDTH)


OTHERS = [noise(seed=1), noise(seed=2)]
TRANSFORMS: dict[str, Callable[[Tensor], Tensor]] = {
    "resize": Resize(HEIGHT, WIDTH),
    "resize-bilinear": Resize(HEIGHT, WIDTH, "bilinear"),
    "flip": Flip(1.0),
    "flip-at-times": Flip(0.5),
    "pad-crop": PadCrop(HEIGHT, WIDTH, padding=4, fill=7),
    "resized-crop": RandomResizedCrop(HEIGHT, WIDTH, (0.2, 1.0), (0.75, 1.3333)),
    "jitter": built(configs.ColorJitter, saturation=0.2, hue=0.1),
    "jitter-at-times": built(configs.ColorJitter, probability=0.5),
    "affine": built(configs.Affine, translate=(0.1, 0.1)),
    "auto-augment": built(configs.AutoAugment, probability=1.0),
    "augmix": built(configs.AugMix),
    "erasing-mean": RandomErasing(1.0, (0.02, 0.33), (0.3, 3.3), "mean"),
    "erasing-random": RandomErasing(1.0, (0.02, 0.33), (0.3, 3.3), "random"),
    "erasing-zero": RandomErasing(1.0, (0.02, 0.33), (0.3, 3.3), "zero"),
    "patch": partial(RandomPatch(1.0, (0.01, 0.5), (0.1, 10)), others=OTHERS),
    "cutout": Cutout(1.0, 0.5),
}
every = pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)


def seeded(transform: Callable[..., Tensor], image: Tensor, seed: int, *others: Sequence[Tensor]) -> Tensor:
    torch.manual_seed(seed)
    return transform(image, *others)


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
def test_torchs_generator_alone_decides_the_result(transform: Callable[[Tensor], Tensor]) -> None:
    for seed in range(20):
        expected = seeded(transform, noise(), seed)
        state = random.getstate(), np.random.get_state()[1].tolist()
        assert torch.equal(seeded(transform, noise(), seed), expected)
        assert (random.getstate(), np.random.get_state()[1].tolist()) == state


@pytest.mark.parametrize("name", sorted(set(TRANSFORMS) - {"resize", "resize-bilinear", "flip"}))
def test_another_seed_gives_another_result(name: str) -> None:
    results = [seeded(TRANSFORMS[name], noise(), seed) for seed in range(10)]
    assert any(not torch.equal(result, results[0]) for result in results)


@pytest.mark.parametrize("config", [item.config for item in configs.reidcore_transforms()])
def test_a_probability_of_0_is_never(config: type) -> None:
    if hasattr(config, "probability"):
        transform = built(config, probability=0.0)
        arguments = [OTHERS] if getattr(transform, "mixes", False) else []
        assert all(torch.equal(seeded(transform, noise(), seed, *arguments), noise()) for seed in range(50))


@pytest.mark.parametrize("name", ["flip", "jitter", "affine", "augmix", "erasing-random", "patch", "cutout"])
def test_a_probability_of_1_is_always(name: str) -> None:
    assert not any(torch.equal(seeded(TRANSFORMS[name], noise(), seed), noise()) for seed in range(50))


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


def test_a_crop_is_what_padding_all_of_the_image_first_would_give() -> None:
    sizes = random.Random(0)
    cropped = 0
    for seed in range(600):
        height, width, h, w = (sizes.randint(1, 30) for _ in range(4))
        padding = sizes.randint(0, 40)  # beyond the crop's size, so that it may see nothing of the image
        if min(height + 2 * padding - h, width + 2 * padding - w) < 0:
            continue
        image = noise(height, width, seed)
        result = seeded(PadCrop(h, w, padding, 9), image, seed)
        torch.manual_seed(seed)
        top = int(torch.randint(height + 2 * padding - h + 1, ()))
        left = int(torch.randint(width + 2 * padding - w + 1, ()))
        padded = torch.nn.functional.pad(image, [padding] * 4, value=9)
        assert torch.equal(result, padded[:, top : top + h, left : left + w])
        cropped += 1
    assert cropped > 500


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
    parts = {item.name: built(item.config) for item in configs.reidcore_transforms()}
    assert {name: part.resizes for name, part in parts.items()} == {
        "resize": True,
        "flip": False,
        "pad-crop": False,
        "random-resized-crop": True,
        "color-jitter": False,
        "affine": False,
        "auto-augment": False,
        "augmix": False,
        "random-erasing": False,
        "random-patch": False,
        "cutout": False,
    }
    for name in ("resize", "random-resized-crop"):
        assert parts[name](noise(50, 50)).shape == (3, HEIGHT, WIDTH)


@pytest.mark.parametrize(
    ("config", "name"),
    [
        (configs.RandomErasing, "area"),
        (configs.RandomErasing, "ratio"),
        (configs.RandomPatch, "area"),
        (configs.RandomPatch, "ratio"),
        (configs.Affine, "scale"),
    ],
)
def test_bounds_in_the_wrong_order_are_refused(config: type, name: str) -> None:
    with pytest.raises(ValueError, match=rf"{name}: found 0.5 above 0.2; expected the smaller one first"):
        config(**{name: (0.5, 0.2)})


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
    for options in ({"probability": 0.0}, {"brightness": 0.0, "contrast": 0.0}):
        assert torch.equal(seeded(built(configs.ColorJitter, **options), noise(), 1), noise())


def test_jitter_of_brightness_is_one_factor_for_all_pixels() -> None:
    image = torch.full((3, HEIGHT, WIDTH), 100, dtype=torch.uint8)
    jitter = built(configs.ColorJitter, contrast=0.0)
    values = [seeded(jitter, image, seed).unique() for seed in range(50)]
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


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (configs.ColorJitter(hue=0.1), v2.ColorJitter(0.2, 0.2, 0.0, 0.1)),
        (configs.Affine(), v2.RandomAffine(10, (0, 0), (0.9, 1.1), 0.1, v2.InterpolationMode.BILINEAR, fill=0)),
        (
            configs.AutoAugment(probability=1.0),
            v2.AutoAugment(v2.AutoAugmentPolicy.IMAGENET, v2.InterpolationMode.BILINEAR, fill=128),
        ),
        (configs.AugMix(), v2.AugMix(3, 3, -1, 1.0, True, v2.InterpolationMode.BILINEAR, fill=0)),
        (configs.AugMix(severity=1, depth=1, all_ops=False), v2.AugMix(1, 3, 1, 1.0, False, "bilinear", fill=0)),
    ],
)
def test_what_torchvision_has_is_torchvisions(config: Any, expected: Callable[[Tensor], Tensor]) -> None:
    for seed in range(30):
        found = seeded(config.build(HEIGHT, WIDTH), noise(), seed)
        torch.manual_seed(seed)
        torch.rand(1)  # whether to do it at all
        assert torch.equal(found, expected(noise()))


def test_auto_augment_leaves_9_of_10_images_alone() -> None:
    torch.manual_seed(0)
    augment = built(configs.AutoAugment)
    changed = sum(not torch.equal(augment(noise()), noise()) for _ in range(1000))
    # at most 100 of 1000 in the mean, with a standard deviation below 10; few of the policy's pairs change nothing
    assert 50 < changed < 130


def test_what_an_affine_map_brings_in_has_the_fill_value() -> None:
    white = torch.full((3, HEIGHT, WIDTH), 255, dtype=torch.uint8)
    shrink = built(configs.Affine, degrees=0.0, shear=0.0, scale=(0.5, 0.5), fill=7)(white)
    assert (shrink[:, 0] == 7).all() and (shrink[:, :, -1] == 7).all()
    assert (shrink[:, 8:16, 6:10] == 255).all()


def test_an_affine_map_shifts_by_at_most_a_share_of_width_and_of_height() -> None:
    shift = built(configs.Affine, degrees=0.0, shear=0.0, scale=(1.0, 1.0), translate=(0.25, 0.0), fill=0)
    rows, columns = set(), set()
    for seed in range(100):
        image = torch.zeros(3, HEIGHT, WIDTH, dtype=torch.uint8)
        image[:, 12, 8] = 255
        row, column = (seeded(shift, image, seed)[0] == 255).nonzero()[0].tolist()
        rows.add(row)
        columns.add(column)
    assert (rows, columns) == ({12}, set(range(4, 13)))


def windows(image: Tensor, h: int, w: int) -> Tensor:
    """Return every part of `h` by `w` pixels as a row."""
    return image.unfold(1, h, 1).unfold(2, w, 1).permute(1, 2, 0, 3, 4).flatten(0, 1).flatten(1)


def test_a_patch_is_a_part_of_one_of_the_others_pasted_at_another_place() -> None:
    image, others = noise(), [noise(seed=1), noise(seed=2)]
    patch = RandomPatch(1.0, (0.1, 0.3), (0.5, 2.0))
    sources = set()
    for seed in range(60):
        result = seeded(patch, image, seed, others)
        rows, columns = erased(result, image)
        pasted = result[:, rows, columns]
        found = [(windows(other, *pasted.shape[1:]) == pasted.flatten()).all(1).nonzero() for other in others]
        assert sum(map(len, found)) == 1
        source = int(len(found[1]) > 0)
        place = int(found[source]) // (WIDTH - pasted.shape[2] + 1), int(found[source]) % (WIDTH - pasted.shape[2] + 1)
        sources.add((source, place == (rows.start, columns.start)))
    assert {(0, False), (1, False)} <= sources
    assert all(torch.equal(other, noise(seed=seed)) for seed, other in enumerate(others, 1))


def test_a_patch_has_area_and_ratio_within_bounds() -> None:
    image, others = torch.zeros(3, 64, 48, dtype=torch.uint8), [torch.ones(3, 64, 48, dtype=torch.uint8)]
    shares = []
    for seed in range(300):
        rows, columns = erased(seeded(RandomPatch(1.0, (0.05, 0.2), (0.5, 2.0)), image, seed, others), image)
        h, w = rows.stop - rows.start, columns.stop - columns.start
        assert (h - 0.5) / (w + 0.5) <= 2.0 and (h + 0.5) / (w - 0.5) >= 0.5
        shares.append(h * w / (64 * 48))
    assert min(shares) == pytest.approx(0.05, abs=0.01)
    assert max(shares) == pytest.approx(0.2, abs=0.01)


def test_a_patch_may_come_from_an_image_of_another_size() -> None:
    for seed in range(30):
        result = seeded(RandomPatch(1.0, (0.1, 0.5), (0.5, 2.0)), torch.zeros(3, 40, 10), seed, [torch.ones(3, 12, 50)])
        assert 0 < result[0].sum() <= 12 * 10 * 0.6


def test_an_image_without_others_gets_no_patch() -> None:
    assert torch.equal(RandomPatch(1.0, (0.01, 0.5), (0.1, 10))(noise(), []), noise())


@pytest.mark.parametrize(("size", "side"), [(0.5, 4), (0.4, 3), (1.5, 12)])
def test_a_cut_out_square_has_its_centre_anywhere_and_is_cut_off_by_the_border(size: float, side: int) -> None:
    image = torch.ones(3, 9, 8, dtype=torch.uint8)
    expected = {}  # by the definition: a pixel is cut out when it is within the square about the centre
    for y in range(9):
        for x in range(8):
            cut = image.clone()
            for row in range(9):
                for column in range(8):
                    if 0 <= row - y + side // 2 < side and 0 <= column - x + side // 2 < side:
                        cut[:, row, column] = 0
            expected[cut.numpy().tobytes()] = 0
    for seed in range(1000):
        expected[seeded(Cutout(1.0, size), image, seed).numpy().tobytes()] += 1  # a KeyError for any other square
    assert min(expected.values()) > 0
