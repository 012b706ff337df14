"""Reading images and making batches."""

import gc
import io
import multiprocessing
import os
import re
import signal
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from attrs import frozen
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from reidcore.builtin.modules.samplers import IdentityBalanced
from reidcore.builtin.modules.transforms import Flip, PadCrop, RandomErasing, RandomPatch, Resize
from reidcore.data import Loader, as_pixels, read_image, test_batches
from reidcore.data.loader import split_batch
from reidcore.data.reading import worker_count
from reidcore.errors import DataError, RunError
from reidcore.types import ALONE, Batch, Sample, Stream, World

test_batches.__test__ = False  # type: ignore[attr-defined]
SIZE = (16, 12)
CPU = torch.device("cpu")
AUGMENT = [Resize(*SIZE), Flip(0.5), PadCrop(*SIZE, 3, 0), RandomErasing(0.5, (0.1, 0.3), (0.5, 2.0), "random")]
MIXING = [*AUGMENT, RandomPatch(0.9, (0.1, 0.3), (0.5, 2.0)), RandomErasing(0.9, (0.1, 0.3), (0.5, 2.0), "random")]


@frozen
class Drawing:
    """A picture whose colour tells its number."""

    number: int

    @property
    def name(self) -> str:
        return f"drawing {self.number}"

    def open(self) -> Image.Image:
        rows = np.random.default_rng(self.number).integers(0, 256, (20, 15, 3), dtype=np.uint8)
        return Image.fromarray(rows)


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    """(8, 6, 3): four quarters of a colour each, none of them grey."""
    rows = np.zeros((8, 6, 3), np.uint8)
    rows[:4, :3], rows[:4, 3:], rows[4:, :3], rows[4:, 3:] = (250, 10, 10), (10, 250, 10), (10, 10, 250), (240, 240, 10)
    return rows


def saved(image: Image.Image, file: Path, **options: Any) -> Sample:
    image.save(file, **options)
    return Sample(file)


def read(sample: Sample) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        image = read_image(sample)
    assert image.dtype == torch.uint8 and image.ndim == 3 and image.shape[0] == 3
    return image.permute(1, 2, 0).numpy()


def reading_error(file: Path) -> str:
    with pytest.raises(DataError) as caught:
        read_image(Sample(file))
    return str(caught.value)


def loading_error(batches: Callable[[], Iterator[Any]]) -> str:
    """Return the message only: the error itself would keep the loader and its processes alive."""
    try:
        list(batches())
    except DataError as error:
        return str(error)
    raise AssertionError("nothing was found wrong")


def make_loader(
    samples: Sequence[Sample] | None = None,
    labels: Sequence[int] | None = None,
    *,
    p: int = 3,
    k: int = 2,
    pipeline: Sequence[Callable[[Tensor], Tensor]] = AUGMENT,
    seed: int = 0,
    workers: int = 0,
    world: World = ALONE,
) -> Loader:
    if samples is None:
        samples = [Sample(Drawing(number), identity=number // 4, camera=number % 3) for number in range(24)]
    labels = np.array([sample.identity for sample in samples] if labels is None else labels)
    sampler = IdentityBalanced(labels, np.array([sample.camera for sample in samples]), p, k, seed)
    return Loader(
        Stream(samples, labels), sampler, pipeline, size=SIZE, seed=seed, workers=workers, device=CPU, world=world
    )


def same(first: Sequence[Batch], second: Sequence[Batch]) -> bool:
    return len(first) == len(second) and all(
        torch.equal(getattr(a, name), getattr(b, name))
        for a, b in zip(first, second, strict=True)
        for name in ("images", "labels", "cameras", "indices")
    )


def test_a_colour_image_is_read_as_it_is(tmp_path: Path, pixels: np.ndarray) -> None:
    assert np.array_equal(read(saved(Image.fromarray(pixels), tmp_path / "a.png")), pixels)


def test_a_jpeg_is_read(tmp_path: Path, pixels: np.ndarray) -> None:
    found = read(saved(Image.fromarray(pixels), tmp_path / "a.jpg", quality=100, subsampling=0))
    assert np.abs(found.astype(int) - pixels).max() <= 3


@pytest.mark.parametrize("mode", ["L", "1", "LA"])
def test_a_grey_image_becomes_three_equal_channels(tmp_path: Path, pixels: np.ndarray, mode: str) -> None:
    grey = Image.fromarray(pixels).convert(mode)
    found = read(saved(grey, tmp_path / "a.png"))
    assert np.array_equal(found, np.asarray(grey.convert("L"))[:, :, None].repeat(3, 2))


def test_16_bit_grey_keeps_its_contrast(tmp_path: Path) -> None:
    rows = np.array([[0, 255, 256], [32768, 65279, 65535]], np.uint16)
    found = read(saved(Image.fromarray(rows), tmp_path / "a.png"))
    assert found[:, :, 0].tolist() == [[0, 0, 1], [128, 254, 255]]


def test_a_palette_image_has_its_colours(tmp_path: Path, pixels: np.ndarray) -> None:
    assert np.array_equal(read(saved(Image.fromarray(pixels).quantize(8), tmp_path / "a.png")), pixels)


def test_a_palette_with_transparency_is_read_without_a_warning(tmp_path: Path, pixels: np.ndarray) -> None:
    palette = Image.fromarray(pixels).quantize(8)
    found = read(saved(palette, tmp_path / "a.png", transparency=bytes([0, 100, 200, 255])))
    assert np.array_equal(found, pixels)


def test_transparency_is_dropped(tmp_path: Path, pixels: np.ndarray) -> None:
    image = Image.fromarray(pixels)
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    assert np.array_equal(read(saved(image, tmp_path / "a.png")), pixels)


def test_a_print_image_is_read(tmp_path: Path, pixels: np.ndarray) -> None:
    found = read(saved(Image.fromarray(pixels).convert("CMYK"), tmp_path / "a.tif"))
    assert np.abs(found.astype(int) - pixels).max() <= 2


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_a_turned_image_comes_out_upright(tmp_path: Path, pixels: np.ndarray, orientation: int, suffix: str) -> None:
    # how a camera that notes `orientation` has stored the upright image (EXIF 2.3, tag 0x0112)
    stored = {
        1: pixels,
        2: pixels[:, ::-1],
        3: pixels[::-1, ::-1],
        4: pixels[::-1],
        5: pixels.transpose(1, 0, 2),
        6: np.rot90(pixels, 1),
        7: pixels[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(pixels, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    options: dict[str, Any] = {"quality": 100, "subsampling": 0} if suffix == "jpg" else {}
    image = Image.fromarray(np.ascontiguousarray(stored))
    found = read(saved(image, tmp_path / f"a.{suffix}", exif=exif, **options))
    assert found.shape == pixels.shape
    assert np.abs(found.astype(int) - pixels).max() <= 3


@pytest.mark.parametrize(
    "view", [lambda rows: rows, lambda rows: rows[:, :, ::-1], lambda rows: rows[::-1, ::2]], ids=["", "bgr", "strided"]
)
def test_arrays_are_taken_whatever_their_memory_looks_like(
    pixels: np.ndarray, view: Callable[[np.ndarray], np.ndarray]
) -> None:
    array = view(pixels.copy())
    array.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.array_equal(as_pixels(array).permute(1, 2, 0).numpy(), array)


@pytest.mark.parametrize("array", [np.zeros((4, 4)), np.zeros((4, 4, 3)), np.zeros((3, 4, 4), np.uint8), None])
def test_other_arrays_are_refused(array: Any) -> None:
    with pytest.raises(DataError, match=r"expected an image of shape \(H, W, 3\) and type uint8, found "):
        as_pixels(array)


def test_a_missing_image_is_named(tmp_path: Path) -> None:
    assert reading_error(tmp_path / "no.jpg") == f"there is no image {tmp_path / 'no.jpg'}"


@pytest.mark.parametrize("content", [b"", b"hello", b"\xff\xd8\xff\xe0"], ids=["empty", "text", "only a beginning"])
def test_a_file_that_is_no_image_is_named(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "bad.jpg"
    file.write_bytes(content)
    expected = f"cannot read the image {file}: it is empty, damaged or no image; replace it or take it out"
    assert reading_error(file) == expected


@pytest.mark.parametrize("suffix", ["jpg", "png", "bmp"])
def test_a_cut_off_image_is_named(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"cut.{suffix}"
    Drawing(0).open().save(file)
    file.write_bytes(file.read_bytes()[:-100])
    found = reading_error(file)
    assert found.startswith(f"cannot read the image {file}: ") and found.endswith("; replace it or take it out")
    assert "\n" not in found


@given(data=st.data())
def test_whatever_is_wrong_with_the_bytes_is_a_data_error(data: st.DataObject) -> None:
    stream = io.BytesIO()
    Drawing(0).open().save(stream, data.draw(st.sampled_from(["JPEG", "PNG", "TIFF", "GIF", "WEBP"])))
    content = bytearray(stream.getvalue())
    for place in data.draw(st.lists(st.integers(0, 200), min_size=1, max_size=5)):
        content[place] = data.draw(st.integers(0, 255))
    content = content[: data.draw(st.integers(1, len(content)))]

    @frozen
    class Damaged:
        name = "damaged"

        def open(self) -> Image.Image:
            return Image.open(io.BytesIO(bytes(content)))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PIL has much to say about such files
        try:
            assert read_image(Sample(Damaged())).dtype == torch.uint8
        except DataError as error:
            assert "damaged" in str(error)


def test_a_folder_in_place_of_an_image_is_named(tmp_path: Path) -> None:
    assert reading_error(tmp_path) == f"cannot read the image {tmp_path}: Is a directory; replace it or take it out"


def test_a_batch_holds_the_images_that_its_indices_name() -> None:
    loader = make_loader(pipeline=[Resize(*SIZE)])
    for batch in loader.batches(0):
        assert batch.images.shape == (6, 3, *SIZE) and batch.images.dtype == torch.uint8
        for image, label, camera, index in zip(
            batch.images, batch.labels, batch.cameras, batch.indices.tolist(), strict=True
        ):
            assert torch.equal(image, Resize(*SIZE)(read_image(loader.stream.samples[index])))
            assert (label.item(), camera.item()) == (index // 4, index % 3)
        assert batch.labels.dtype == batch.cameras.dtype == torch.int64


def test_the_labels_are_the_streams_and_not_the_identities() -> None:
    samples = [Sample(Drawing(number), identity=100 + number // 2) for number in range(6)]
    for batch in make_loader(samples, [0, 0, 1, 1, 2, 2]).batches(0):
        assert batch.labels.tolist() == [index // 2 for index in batch.indices.tolist()]


def test_the_images_lie_in_memory_as_convolutions_like_them() -> None:
    (batch, *_) = make_loader().batches(0)
    assert batch.images.is_contiguous(memory_format=torch.channels_last)


@pytest.fixture(scope="module")
def two_epochs() -> tuple[list[Batch], list[Batch]]:
    loader = make_loader()
    return list(loader.batches(0)), list(loader.batches(1))


@pytest.fixture(scope="module")
def two_mixed_epochs() -> tuple[list[Batch], list[Batch]]:
    loader = make_loader(pipeline=MIXING)
    return list(loader.batches(0)), list(loader.batches(1))


@pytest.mark.parametrize("workers", [1, 2])
def test_the_batches_do_not_depend_on_the_number_of_processes(
    workers: int, two_epochs: tuple[list[Batch], list[Batch]], two_mixed_epochs: tuple[list[Batch], list[Batch]]
) -> None:
    for pipeline, epochs in ((AUGMENT, two_epochs), (MIXING, two_mixed_epochs)):
        loader = make_loader(pipeline=pipeline, workers=workers)
        for number, expected in enumerate(epochs):
            assert same(list(loader.batches(number)), expected)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_epoch_that_is_resumed_goes_on_as_it_would_have(
    workers: int, two_epochs: tuple[list[Batch], list[Batch]], two_mixed_epochs: tuple[list[Batch], list[Batch]]
) -> None:
    for pipeline, epochs in ((AUGMENT, two_epochs), (MIXING, two_mixed_epochs)):
        assert same(list(make_loader(pipeline=pipeline, workers=workers).batches(1, skip=2)), epochs[1][2:])


class Mix:
    """A mixing transform that notes what it is given, and turns the image into another one."""

    resizes = False
    mixes = True

    def __init__(self) -> None:
        self.seen: list[tuple[Tensor, list[Tensor]]] = []

    def __call__(self, image: Tensor, others: Sequence[Tensor]) -> Tensor:
        self.seen.append((image.clone(), [other.clone() for other in others]))
        return others[0] if others else image


def test_a_transform_that_mixes_gets_the_others_of_the_batch_as_they_were_before_it() -> None:
    mix = Mix()
    before = list(make_loader().batches(0))
    after = list(make_loader(pipeline=[*AUGMENT, mix]).batches(0))
    assert len(mix.seen) == sum(len(batch.labels) for batch in before)
    for batch, mixed in zip(before, after, strict=True):
        for place, image in enumerate(batch.images):
            seen, others = mix.seen.pop(0)
            expected = [other for number, other in enumerate(batch.images) if number != place]
            assert torch.equal(seen, image)
            assert torch.equal(torch.stack(others), torch.stack(expected))
            assert torch.equal(mixed.images[place], expected[0])


def test_a_batch_of_one_image_has_no_others() -> None:
    mix = Mix()
    list(make_loader([Sample(Drawing(0), identity=0)], p=1, k=1, pipeline=[*AUGMENT, mix]).batches(0))
    assert [others for _, others in mix.seen] == [[]]


def test_transforms_after_one_that_mixes_have_a_seed_of_their_own() -> None:
    drawn: list[list[float]] = [[], [], []]

    def note(stage: int) -> Callable[[Tensor], Tensor]:
        return lambda image: drawn[stage].append(float(torch.rand(()))) or image

    pipeline = [Resize(*SIZE), note(0), Mix(), note(1), Mix(), note(2)]
    list(make_loader(pipeline=pipeline).batches(0))
    assert len(set(drawn[0] + drawn[1] + drawn[2])) == 3 * len(drawn[0])
    again = drawn.copy()
    drawn[:] = [[], [], []]
    list(make_loader(pipeline=pipeline, world=World(1, 2)).batches(0))  # the rest of each batch does not matter
    for stage in range(3):
        assert set(drawn[stage]) < set(again[stage])


def test_the_seed_of_an_augmentation_is_that_of_older_versions() -> None:
    # a change here changes the results of every experiment
    (batch, *_) = make_loader(pipeline=[Resize(*SIZE), RandomErasing(1.0, (0.1, 0.3), (0.5, 2.0), "random")]).batches(0)
    for position, (image, index) in enumerate(zip(batch.images, batch.indices.tolist(), strict=True)):
        words = np.random.SeedSequence([0, 0, position]).generate_state(1, np.uint64)
        with torch.random.fork_rng():
            torch.manual_seed(int(words[0] >> 1))
            resized = Resize(*SIZE)(read_image(Sample(Drawing(index))))
            assert torch.equal(image, RandomErasing(1.0, (0.1, 0.3), (0.5, 2.0), "random")(resized))


def test_an_epoch_that_was_left_in_the_middle_leaves_nothing_behind(
    two_epochs: tuple[list[Batch], list[Batch]],
) -> None:
    loader = make_loader(workers=2)
    abandoned = loader.batches(0)
    next(abandoned)
    assert same(list(loader.batches(1)), two_epochs[1])


def test_augmentation_differs_between_positions_epochs_and_seeds() -> None:
    samples = [Sample(Drawing(0), identity=0)]

    def images(seed: int, epoch: int) -> Tensor:
        (batch,) = make_loader(samples, p=1, k=8, seed=seed).batches(epoch)
        return batch.images

    first = images(0, 0)
    assert len(first.flatten(1).unique(dim=0)) >= 7
    assert not torch.equal(first, images(0, 1))
    assert not torch.equal(first, images(1, 0))
    assert torch.equal(first, images(0, 0))


def test_augmentation_does_not_depend_on_the_global_generator(two_epochs: tuple[list[Batch], list[Batch]]) -> None:
    torch.manual_seed(12345)
    torch.rand(7)
    assert same(list(make_loader().batches(0)), two_epochs[0])


@pytest.mark.parametrize("workers", [0, 1])
def test_loading_leaves_the_global_generator_alone(workers: int) -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    list(make_loader(workers=workers).batches(0))
    samples = [Sample(Drawing(number)) for number in range(3)]
    list(test_batches(samples, [Resize(*SIZE)], size=SIZE, batch=2, workers=workers, device=CPU))
    assert torch.equal(torch.rand(3), expected)


def damaged(tmp_path: Path) -> list[Sample]:
    (tmp_path / "bad.jpg").write_bytes(b"")
    return [Sample(Drawing(0), 0), Sample(tmp_path / "bad.jpg", 0), Sample(Drawing(2), 1), Sample(Drawing(3), 1)]


def batches_of(samples: list[Sample], workers: int, training: bool) -> Iterator[Any]:
    if training:
        return make_loader(samples, p=2, k=2, workers=workers).batches(0)
    return test_batches(samples, [Resize(*SIZE)], size=SIZE, batch=2, workers=workers, device=CPU)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_bad_image_to_mix_with_is_one_clean_sentence_too(tmp_path: Path, workers: int) -> None:
    found = loading_error(lambda: make_loader(damaged(tmp_path), p=2, k=2, pipeline=MIXING, workers=workers).batches(0))
    assert found.startswith(f"cannot read the image {tmp_path / 'bad.jpg'}: ")


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("training", [True, False])
def test_a_bad_image_is_one_clean_sentence_from_any_process(tmp_path: Path, workers: int, training: bool) -> None:
    assert loading_error(lambda: batches_of(damaged(tmp_path), workers, training)) == (
        f"cannot read the image {tmp_path / 'bad.jpg'}: it is empty, damaged or no image; replace it or take it out"
    )


def test_the_processes_end_with_a_loader_that_failed(tmp_path: Path) -> None:
    def fail() -> Any:
        loader = make_loader(damaged(tmp_path), p=2, k=2, workers=1)
        try:
            list(loader.batches(0))
        except DataError:
            return loader.loader._iterator._workers
        raise AssertionError("the bad image was not found")

    gc.disable()  # collected as garbage, they would be waited for in vain
    try:
        assert not any(process.is_alive() for process in fail())
    finally:
        gc.enable()


KILLED = (
    "a process that reads images was killed, most likely because memory ran out; lower input.workers or input.cache, "
    "or enlarge /dev/shm if it is small, as in a container; a training goes on with --resume"
)


@pytest.mark.parametrize("training", [True, False])
def test_a_killed_process_is_one_clean_sentence_and_no_hang(training: bool) -> None:
    samples = [Sample(Drawing(number), number // 4) for number in range(80)]
    handler = signal.getsignal(signal.SIGCHLD)
    before = set(multiprocessing.active_children())
    batches = batches_of(samples, 2, training)
    next(batches)
    for process in set(multiprocessing.active_children()) - before:
        os.kill(process.pid, signal.SIGKILL)  # type: ignore[arg-type]
    with pytest.raises(RunError) as caught:
        list(batches)
    assert str(caught.value) == KILLED
    assert signal.getsignal(signal.SIGCHLD) == handler  # torch's might raise in the middle of a step


def test_ctrl_c_is_for_the_training_alone() -> None:
    loader = make_loader(workers=1)
    batches = loader.batches(0)
    next(batches)
    for process in loader.loader._iterator._workers:
        os.kill(process.pid, signal.SIGINT)
    assert len(list(batches)) == len(loader) - 1


@pytest.mark.parametrize("workers", [0, 1])
def test_a_mistake_in_a_transform_is_not_taken_for_a_killed_process(workers: int) -> None:
    def mistaken(image: Tensor) -> Tensor:
        raise RuntimeError("DataLoader worker is what it calls itself")

    with pytest.raises(RuntimeError, match="is what it calls itself"):
        list(make_loader(pipeline=[mistaken], workers=workers).batches(0))


@pytest.mark.parametrize("workers", [0, 1])
def test_what_a_transform_refuses_is_one_clean_sentence_from_any_process(workers: int) -> None:
    pipeline = [PadCrop(40, 30, 1, 0), Resize(*SIZE)]
    assert loading_error(lambda: make_loader(pipeline=pipeline, workers=workers).batches(0)) == (
        "transform: pad-crop got an image of 20x15 pixels, too small to crop 40x30 from; place 'resize' before it"
    )


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_of_another_size_than_the_input_is_an_error(workers: int) -> None:
    found = loading_error(lambda: make_loader(pipeline=[Flip(0.5)], workers=workers).batches(0))
    assert re.fullmatch(r"transform: drawing \d+ came out as 20x15 pixels; expected the input size 16x12", found)


@pytest.mark.parametrize("workers", [0, 2])
def test_images_to_evaluate_come_in_their_order(workers: int) -> None:
    samples = [Sample(Drawing(number)) for number in range(7)]
    resize = Resize(*SIZE)
    batches = list(test_batches(samples, [resize], size=SIZE, batch=3, workers=workers, device=CPU))
    assert [len(batch) for batch in batches] == [3, 3, 1]
    assert torch.equal(torch.cat(batches), torch.stack([resize(read_image(sample)) for sample in samples]))


def test_no_images_to_evaluate_are_no_batches() -> None:
    assert list(test_batches([], [Resize(*SIZE)], size=SIZE, batch=3, workers=2, device=CPU)) == []


@pytest.mark.parametrize("size", [2, 3])
def test_processes_share_each_batch_by_whole_identities(size: int, two_epochs: tuple[list[Batch], list[Batch]]) -> None:
    shares = [list(make_loader(world=World(rank, size)).batches(0)) for rank in range(size)]
    assert {len(share) for share in shares} == {len(two_epochs[0])}
    for whole, *parts in zip(two_epochs[0], *shares, strict=True):
        assert torch.cat([part.indices for part in parts]).tolist() == whole.indices.tolist()
        assert torch.equal(torch.cat([part.images for part in parts]), whole.images)  # the augmentation is the same
        identities = [set(part.labels.tolist()) for part in parts]
        assert all(identities) and sum(map(len, identities)) == len(set.union(*identities)) == 3


@given(counts=st.lists(st.integers(1, 4), min_size=1, max_size=9), size=st.integers(1, 4))
def test_a_batch_is_divided_as_equally_as_whole_identities_allow(counts: list[int], size: int) -> None:
    labels = np.repeat(np.arange(len(counts))[::-1], counts)
    if len(counts) < size:
        return
    parts = [split_batch(labels, World(rank, size)) for rank in range(size)]
    assert np.concatenate(parts).tolist() == list(range(len(labels)))
    numbers = [len(set(labels[part])) for part in parts]
    assert sum(numbers) == len(counts) and max(numbers) - min(numbers) <= 1


def test_unlabelled_images_are_divided_one_by_one() -> None:
    labels = np.array([-1, -1, -1, 4, 4, -1])
    assert [split_batch(labels, World(rank, 2)).tolist() for rank in range(2)] == [[0, 1, 2], [3, 4, 5]]


@pytest.mark.parametrize("rank", range(3))
def test_fewer_identities_than_processes_is_an_error_in_each_of_them(rank: int) -> None:
    with pytest.raises(DataError, match="of 2 identities cannot be split over 3 processes; let the sampler take"):
        list(make_loader(p=2, world=World(rank, 3)).batches(0))


def test_the_number_of_processes_is_at_most_8_unless_it_is_given() -> None:
    assert 1 <= worker_count(None) <= 8
    assert (worker_count(0), worker_count(30)) == (0, 30)


def test_processes_on_a_machine_share_its_cores(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: range(12), raising=False)
    counts = []
    for processes in (1, 3, 16):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
        counts.append(worker_count(None))
    assert counts == [8, 4, 1]
