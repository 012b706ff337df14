import pytest
import torch
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from reid_dsr import Occlusion, PartialCrop

HEIGHT, WIDTH = 40, 20
# brightness says the row, colour the column
IMAGE = torch.stack(
    [
        torch.arange(HEIGHT)[:, None].expand(HEIGHT, WIDTH) * 6,
        torch.arange(WIDTH)[None].expand(HEIGHT, WIDTH) * 12,
        torch.full((HEIGHT, WIDTH), 77),
    ]
).to(torch.uint8)


@pytest.mark.parametrize(
    ("side", "left"),
    [
        ("top", IMAGE[:, 20:]),
        ("bottom", IMAGE[:, :20]),
        ("left", IMAGE[:, :, 10:]),
        ("right", IMAGE[:, :, :10]),
    ],
)
def test_half_an_image_is_cut_away_and_the_rest_resized(side, left):
    crop = PartialCrop(kept=(0.5, 0.5), sides=(side,)).build(HEIGHT, WIDTH)
    expected = F.resize(left, [HEIGHT, WIDTH], interpolation=InterpolationMode.BICUBIC, antialias=True)
    assert torch.equal(crop(IMAGE), expected)
    assert crop.resizes


def test_what_is_kept_is_within_the_range_and_all_sides_are_cut():
    torch.manual_seed(0)
    crop = PartialCrop(kept=(0.3, 0.7)).build(HEIGHT, WIDTH)
    shares, cut = [], set()
    for _ in range(200):
        found = crop(IMAGE).float()
        rows, columns = (
            (found[0].max() - found[0].min()) / (6 * HEIGHT),
            (found[1].max() - found[1].min()) / (12 * WIDTH),
        )
        shares.append(float(min(rows, columns)))
        if rows < columns:
            cut.add("bottom" if found[0].min() < 12 else "top")
        else:
            cut.add("right" if found[1].min() < 24 else "left")
    assert cut == {"top", "bottom", "left", "right"}
    assert 0.2 < min(shares) < 0.35
    assert 0.6 < max(shares) < 0.75


def test_without_the_chance_an_image_is_only_resized():
    crop = PartialCrop(probability=0).build(10, 30)
    expected = F.resize(IMAGE, [10, 30], interpolation=InterpolationMode.BICUBIC, antialias=True)
    assert torch.equal(crop(IMAGE), expected)
    assert Occlusion(probability=0).build(HEIGHT, WIDTH)(IMAGE) is IMAGE


@pytest.mark.parametrize("fill", ["color", "noise"])
def test_a_side_is_covered_and_the_rest_stays(fill):
    torch.manual_seed(1)
    covered = Occlusion(probability=1, area=(0.25, 0.25), sides=("bottom",), fill=fill).build(HEIGHT, WIDTH)(IMAGE)
    assert torch.equal(covered[:, :30], IMAGE[:, :30])
    colours = covered[:, 30:].flatten(1).unique(dim=1).shape[1]
    assert colours == 1 if fill == "color" else colours > 100


def test_another_image_covers_a_side_with_its_own():
    transform = Occlusion(probability=1, area=(0.5, 0.5), sides=("left",), fill="image").build(HEIGHT, WIDTH)
    assert transform.mixes
    other = IMAGE.flip(1)
    covered = transform(IMAGE, [F.resize(other, [HEIGHT, WIDTH])])
    assert torch.equal(covered[:, :, :10], other[:, :, :10])
    assert torch.equal(covered[:, :, 10:], IMAGE[:, :, 10:])
    alone = transform(IMAGE, [])
    assert alone[:, :, :10].flatten(1).unique(dim=1).shape[1] == 1
    assert not hasattr(Occlusion().build(HEIGHT, WIDTH), "mixes")


def test_a_pixel_is_left_at_least():
    crop = PartialCrop(kept=(0.01, 0.01)).build(4, 4)
    for seed in range(10):
        torch.manual_seed(seed)
        assert crop(IMAGE[:, :2, :1]).shape == (3, 4, 4)
