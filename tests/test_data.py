"""`reidcore data`: what is in a data set, and what is wrong with it."""

from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from reidcore.data import image_size
from reidcore.testing import toy_data


def test_it_counts_images_people_cameras_and_sizes(tmp_path, reidcore) -> None:
    root = toy_data(tmp_path / "toy")
    Image.new("RGB", (50, 40)).save(root / "train" / "0001_c3_big.png")
    status, out, err = reidcore("data", "folder", "--root", root)
    assert (status, err) == (0, "")
    lines = [line.split() for line in out.splitlines()]
    assert lines[0] == ["SPLIT", "IMAGES", "IDENTITIES", "EACH", "CAMERAS", "PIXELS"]
    assert lines[1] == ["train", "37", "6", "6", "to", "7", "3", "12x20", "to", "50x40,", "median", "12x20"]
    assert lines[2] == ["query", "6", "3", "2", "to", "2", "2", "12x20"]
    assert lines[3][:3] == ["gallery", "12", "3"]


def test_a_wrong_count_is_told(tmp_path, reidcore) -> None:
    (tmp_path / "cam_a").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "cam_a" / "000_45.bmp")
    assert (
        "found 1 identities and 1 images; published 632 and 1264" in reidcore("data", "viper", "--root", tmp_path).out
    )


def test_files_that_cannot_be_read_are_listed(tmp_path, reidcore) -> None:
    root = toy_data(tmp_path / "toy")
    (root / "train" / "0001_c1_empty.png").write_bytes(b"")
    good = (root / "query" / "0006_c1_query0.png").read_bytes()
    (root / "query" / "0006_c1_cut.png").write_bytes(good[: len(good) // 2])
    status, out, err = reidcore("data", "folder", "--root", root)
    assert status == 2 and out.startswith("SPLIT")
    assert err.startswith("1 of 56 images cannot be read:\n") and "0001_c1_empty.png" in err
    whole = reidcore("data", "folder", "--root", root, "--whole").err
    assert whole.startswith("2 of 56 images cannot be read:\n") and "0006_c1_cut.png" in whole


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"exif": b"Exif\0\0" + b"x" * 60_000}, {"quality": 5}])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_the_size_in_a_header_is_that_of_the_image(tmp_path: Path, mode: str, options: dict[str, Any]) -> None:
    for suffix in ("jpg", "png", "webp"):
        if suffix == "jpg" or mode == "RGB":
            file = tmp_path / f"a.{suffix}"
            Image.new(mode, (37, 21)).save(file, **options)
            assert image_size(file) == (37, 21)


def test_a_header_that_is_not_a_usual_one_is_left_to_pil(tmp_path: Path) -> None:
    file = tmp_path / "a.jpg"
    Image.new("RGB", (37, 21)).save(file)
    whole = file.read_bytes()
    for size in range(len(whole)):
        head = whole[:size]
        file.write_bytes(head)
        try:
            found = image_size(file)
        except (OSError, SyntaxError):
            continue
        assert found == (37, 21)
    for place in range(min(len(whole), 170)):
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
        with suppress(OSError, SyntaxError, ValueError, IndexError):
            width, height = image_size(file)
            assert width > 0 and height > 0


def test_a_sheet_shows_people_in_rows(tmp_path, reidcore) -> None:
    root, sheet = toy_data(tmp_path / "toy"), tmp_path / "sheet.png"
    status, out, _ = reidcore("data", "folder", "--root", root, "--sheet", sheet)
    assert status == 0 and out.endswith(f"{sheet}: images of 6 identities\n")
    with Image.open(sheet) as picture:
        assert picture.width > 6 * 128 and picture.height > 6 * 192


def test_drawn_sets_are_looked_at_too(reidcore) -> None:
    out = reidcore("data", "synthetic", "--option", "identities=3", "--option", "test_identities=2").out
    assert out.splitlines()[1].split() == ["train", "48", "3", "16", "to", "16", "4", "64x128"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["foldr"], "no dataset is called 'foldr'; did you mean 'folder'?\n"),
        (["folder"], "root: missing; expected a path (folder that holds train/, query/ and gallery/)\n"),
        (["folder", "--option", "rot=x"], "--option rot=x: rot: unknown key; did you mean 'root'?\n"),
        (["veri776", "--root", "nowhere"], f"there is no folder nowhere (in {Path.cwd()}); expected image_train/"),
        (["synthetic", "--sheet", "x.txt"], "cannot draw x.txt: the suffix '.txt' is of no kind of picture"),
    ],
)
def test_mistakes_are_told(arguments, message, reidcore) -> None:
    status, _, err = reidcore("data", *arguments)
    assert status == 2 and err.startswith(message)
