"""Odd images are used rightly, or refused by name; what the recipe may do about bad ones."""

import json
import struct
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from reidcore import load_recipe, run
from reidcore.assemble import read_data
from reidcore.data import leave_out_unreadable, read_image
from reidcore.errors import DataError, ImageWarning
from reidcore.testing import toy_data
from reidcore.types import Sample, Splits


def png(file: Path, width: int, height: int, depth: int, colour: int, rows: bytes) -> Sample:
    """Write a PNG by its specification, for kinds that PIL does not write."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    body = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    file.write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    return Sample(file)


def pixels(sample: Sample) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return read_image(sample).permute(1, 2, 0).numpy()


def refusal(sample: Sample) -> str:
    with pytest.raises(DataError) as caught:
        read_image(sample)
    return str(caught.value)


def test_of_16_bit_colours_the_upper_8_bits_count(tmp_path: Path) -> None:
    values = [[0x0102, 0x80FF, 0xFF00], [0xFFFF, 0x00FF, 0x7F01]]
    rows = b"\0" + b"".join(struct.pack(">3H", *value) for value in values)
    assert pixels(png(tmp_path / "a.png", 2, 1, 16, 2, rows)).tolist() == [[[0x01, 0x80, 0xFF], [0xFF, 0x00, 0x7F]]]


@pytest.mark.parametrize(("depth", "row", "expected"), [(1, b"\xa0", [255, 0, 255]), (2, b"\x34", [0, 255, 85])])
def test_grey_of_few_bits_spans_black_to_white(tmp_path: Path, depth: int, row: bytes, expected: list[int]) -> None:
    found = pixels(png(tmp_path / "a.png", 3, 1, depth, 0, b"\0" + row))
    assert found[0, :, 0].tolist() == expected and (found[:, :, :1] == found).all()


def test_a_print_jpeg_is_not_a_negative(tmp_path: Path) -> None:
    Image.new("RGB", (16, 16), (250, 20, 20)).convert("CMYK").save(tmp_path / "a.jpg", quality=100)
    assert np.abs(pixels(Sample(tmp_path / "a.jpg")).astype(int) - (250, 20, 20)).max() <= 3


@pytest.mark.parametrize("suffix", ["gif", "png", "webp"])
def test_of_an_animation_the_first_frame_counts(tmp_path: Path, suffix: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ((255, 0, 0), (0, 255, 0), (0, 0, 255))]
    frames[0].save(tmp_path / f"a.{suffix}", save_all=True, append_images=frames[1:], lossless=True)
    with Image.open(tmp_path / f"a.{suffix}") as image:
        assert image.n_frames == 3  # type: ignore[attr-defined]
    assert (pixels(Sample(tmp_path / f"a.{suffix}")) == (255, 0, 0)).all()


@pytest.mark.parametrize("exif", [b"Exif\0\0" + b"junk" * 9, b"Exif\0\0II*\0\xff\xff\0\0", b"Exif\0\0MM"])
def test_damaged_notes_on_an_image_do_not_matter(tmp_path: Path, exif: bytes) -> None:
    Image.new("RGB", (8, 4), (9, 99, 199)).save(tmp_path / "a.jpg", quality=100, exif=exif)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert read_image(Sample(tmp_path / "a.jpg")).shape == (3, 4, 8)


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (np.full((2, 2), 0.5, np.float32), "its pixels are numbers with a fraction, of which nothing says what is wh"),
        (np.full((2, 2), 70_000, np.int32), "its pixels have more than 16 bits; replace it or take it out"),
        (np.full((2, 2), -1, np.int32), "its pixels have more than 16 bits; replace it or take it out"),
    ],
)
def test_pixels_without_a_meaning_are_refused(tmp_path: Path, array: np.ndarray, reason: str) -> None:
    file = tmp_path / "a.tif"
    Image.fromarray(array).save(file)
    assert refusal(Sample(file)).startswith(f"cannot read the image {file}: {reason}")


def test_a_huge_image_is_refused_before_it_fills_the_memory(tmp_path: Path) -> None:
    bomb = png(tmp_path / "bomb.png", 60_000, 60_000, 8, 2, b"\0" * 1000)
    assert refusal(bomb) == (
        f"cannot read the image {bomb.name}: it says that it has more than 178,956,970 pixels, too many to be opened "
        "safely; shrink it or take it out"
    )


@pytest.mark.parametrize("error", [KeyError("x"), IndexError(), MemoryError(), RecursionError("deep"), struct.error])
def test_whatever_a_decoder_stumbles_over_the_file_is_named(
    tmp_path: Path, error: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stumble(file: Path) -> None:
        raise error

    monkeypatch.setattr(Image, "open", stumble)
    found = refusal(Sample(tmp_path / "a.png"))
    assert found.startswith(f"cannot read the image {tmp_path / 'a.png'}: ") and ": ;" not in found


def test_a_mistake_in_a_drawing_is_not_called_a_bad_image() -> None:
    class Mistaken:
        name = "mistaken"

        def open(self) -> Image.Image:
            raise KeyError("colour")

    with pytest.raises(KeyError, match="colour"):
        read_image(Sample(Mistaken()))


# what the recipe may do about them


def spoil(root: Path) -> list[Path]:
    """Damage one image of an identity, all of another, and a query."""
    bad = [
        root / "train" / "0001_c1_0empty.png",
        *(root / "train").glob("0003_*.png"),
        *[*(root / "query").iterdir()][:1],
    ]
    for number, file in enumerate(bad):
        file.write_bytes(b"" if number % 2 else b"nothing")
    return bad


def recipe(root: Path, output: Path, **changes: Any) -> dict[str, Any]:
    tables: dict[str, Any] = {
        "run": {"name": "run", "output": str(output), "report": False},
        "train": [{"name": "folder", "root": str(root)}],
        "test": [{"name": "folder", "root": str(root)}],
        "input": {"height": 16, "width": 8, "workers": 0},
        "transform": [{"name": "flip"}, {"name": "random-erasing"}],
        "sampler": {"identities": 3, "instances": 2},
        "backbone": {"name": "resnet18", "base": 4, "weights": "none"},
        "training": {"epochs": 2},
    }
    return {name: {**table, **changes[name]} if name in changes else table for name, table in tables.items()}


def losses(folder: Path) -> list[float]:
    events = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [event["loss"] for event in events if event["kind"] == "step"]


def test_a_run_without_its_bad_images_is_that_of_the_set_without_them(tmp_path: Path) -> None:
    bad = spoil(toy_data(tmp_path / "bad"))
    toy_data(tmp_path / "good")
    for file in bad:
        (tmp_path / "good" / file.relative_to(tmp_path / "bad")).unlink(missing_ok=True)
    with pytest.warns(ImageWarning) as told:
        found = run(recipe(tmp_path / "bad", tmp_path / "skipped", input={"on_bad_image": "skip", "workers": 1}))
    expected = run(recipe(tmp_path / "good", tmp_path / "clean"))
    assert found.metrics == expected.metrics
    assert losses(found.folder) == losses(expected.folder)
    text = str(told[0].message)
    assert text.startswith(f"images left out, since they cannot be read: {len(bad)}\n")
    assert all(str(file) in text for file in bad)
    events = [json.loads(line) for line in (found.folder / "log.jsonl").read_text().splitlines()]
    (event,) = [event for event in events if event["kind"] == "left-out"]
    assert sorted(text.splitlines()[1:]) == sorted(event["images"])


def test_the_command_line_says_what_is_left_out_at_the_start_and_at_the_end(tmp_path: Path, reidcore: Any) -> None:
    bad = spoil(toy_data(tmp_path / "bad"))
    file = tmp_path / "recipe.toml"
    found = recipe(tmp_path / "bad", tmp_path / "runs", input={"on_bad_image": "skip"})
    lines = []
    for name, table in found.items():
        for entry in table if isinstance(table, list) else [table]:
            lines.append(f"[[{name}]]" if isinstance(table, list) else f"[{name}]")
            lines += [f"{key} = {json.dumps(value)}" for key, value in entry.items()]
    file.write_text("\n".join(lines))
    done = reidcore("run", file)
    assert done.status == 0, done.err
    assert done.err.count(f"images left out, since they cannot be read: {len(bad)}\n") == 1
    assert done.err.endswith(f"images left out, since they cannot be read: {len(bad)}; log.jsonl lists them\n")


def test_by_default_a_bad_image_ends_the_run_by_name(tmp_path: Path) -> None:
    spoil(toy_data(tmp_path / "bad"))
    with pytest.raises(DataError, match=r"cannot read the image .*png: it is empty, damaged or no image; replace it"):
        run(recipe(tmp_path / "bad", tmp_path / "runs", input={"workers": 1}))


def test_images_that_are_not_there_are_left_out_too(tmp_path: Path) -> None:
    root = toy_data(tmp_path / "toy")
    files = [file for split in ("train", "query", "gallery") for file in (root / split).iterdir()]
    rows = [f"{file},{file.name[:4]},{file.parent.name}" for file in files]
    table = tmp_path / "table.csv"
    table.write_text("\n".join(["path,identity,split", *rows, "nowhere.png,9999,train"]))
    loaded = load_recipe(
        {
            "run": {"name": "x"},
            "train": [{"name": "csv", "file": str(table)}],
            "input": {"on_bad_image": "skip"},
        }
    )
    with pytest.warns(ImageWarning, match=r"cannot be read: 1\nthere is no image .*nowhere.png"):
        data = read_data(loaded)
    assert len(data.train.samples) == 36 and data.classes == 6


class Shown:
    """A picture that opens, or does not."""

    def __init__(self, name: str, good: bool) -> None:
        self.name, self.good = name, good

    def open(self) -> Image.Image:
        if not self.good:
            raise OSError("torn")
        return Image.new("RGB", (2, 2))


def test_pairs_are_left_out_as_pairs() -> None:
    query = [Sample(Shown(f"q{number}", number != 1), number) for number in range(4)]
    gallery = [Sample(Shown(f"g{number}", number != 2), number) for number in range(4)]
    found, faults = leave_out_unreadable(Splits((), query, gallery), paired=True)
    assert [sample.name for sample in (*found.query, *found.gallery)] == ["q0", "q3", "g0", "g3"]
    assert faults == [f"cannot read the image {name}: torn; replace it or take it out" for name in ("q1", "g2")]
    single, _ = leave_out_unreadable(Splits((), query, gallery), paired=False)
    assert [sample.name for sample in (*single.query, *single.gallery)] == ["q0", "q2", "q3", "g0", "g1", "g3"]


def test_a_set_without_bad_images_stays_what_it_is() -> None:
    splits = Splits([Sample(Shown("a", True))], notes=["a note"])
    assert leave_out_unreadable(splits, False) == (splits, [])


def test_a_set_of_bad_images_only_is_an_error() -> None:
    with pytest.raises(DataError, match="none of 2 images can be read; the first: cannot read the image a: torn; "):
        leave_out_unreadable(Splits([Sample(Shown("a", False)), Sample(Shown("b", False))]), False)
