"""Decoded images that are kept in memory."""

import multiprocessing
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from attrs import evolve, frozen
from PIL import Image
from torch import Tensor

import reidcore.data.cache as cache_module
from reidcore.assemble import assemble, read_data
from reidcore.builtin.modules.samplers import IdentityBalanced
from reidcore.builtin.modules.transforms import Flip, PadCrop, RandomErasing, RandomPatch, RandomResizedCrop, Resize
from reidcore.data import ImageCache, Loader, cache_room
from reidcore.machine import free_memory
from reidcore.recipe import load_recipe
from reidcore.types import ALONE, Batch, Sample, Stream

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there is no cache on Windows")

FORK = multiprocessing.get_context("fork")
SIZE = (16, 12)
IMAGE = 3 * SIZE[0] * SIZE[1]
ERASE = RandomErasing(0.5, (0.1, 0.3), (0.5, 2.0), "random")
AUGMENT = [Resize(*SIZE), Flip(0.5), PadCrop(*SIZE, 3, 0), ERASE]
MIXING = [*AUGMENT, RandomPatch(0.9, (0.1, 0.3), (0.5, 2.0)), ERASE]
CROP = [RandomResizedCrop(*SIZE, (0.5, 1.0), (0.75, 1.3)), Flip(0.5), ERASE]


@frozen
class Drawing:
    """A picture whose pixels tell its number, and that counts how often it is opened."""

    number: int
    opened: ClassVar[list[int]] = []

    @property
    def name(self) -> str:
        return f"drawing {self.number}"

    def open(self) -> Image.Image:
        self.opened.append(self.number)
        return Image.fromarray(np.random.default_rng(self.number).integers(0, 256, (20, 15, 3), dtype=np.uint8))


@pytest.fixture
def samples() -> list[Sample]:
    Drawing.opened.clear()
    return [Sample(Drawing(number), identity=number // 4, camera=number % 3) for number in range(24)]


def noise(seed: int, height: int = 5, width: int = 4) -> Tensor:
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def make_loader(
    samples: Sequence[Sample], cache: ImageCache | None = None, pipeline: Sequence[Any] = AUGMENT, workers: int = 0
) -> Loader:
    labels = np.array([sample.identity for sample in samples])
    return Loader(
        Stream(samples, labels),
        IdentityBalanced(labels, np.array([sample.camera for sample in samples]), 3, 2, 0),
        pipeline,
        size=SIZE,
        seed=0,
        workers=workers,
        device=torch.device("cpu"),
        world=ALONE,
        cache=cache,
    )


def epochs(loader: Loader, count: int = 3) -> list[list[Batch]]:
    return [list(loader.batches(epoch)) for epoch in range(count)]


def same(first: Sequence[Batch], second: Sequence[Batch]) -> bool:
    return len(first) == len(second) and all(
        torch.equal(getattr(a, name), getattr(b, name))
        for a, b in zip(first, second, strict=True)
        for name in ("images", "labels", "cameras", "indices")
    )


@pytest.mark.parametrize("room", [0, 5 * IMAGE, 2**20], ids=["none", "five images", "all"])
@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_the_same_with_and_without_a_cache(samples: list[Sample], workers: int, room: int) -> None:
    for pipeline in (AUGMENT, MIXING, CROP):
        expected = epochs(make_loader(samples, pipeline=pipeline))
        found = epochs(make_loader(samples, ImageCache(samples, room), pipeline, workers))
        assert all(map(same, found, expected))


def test_an_epoch_that_is_resumed_is_the_same_with_an_empty_cache(samples: list[Sample]) -> None:
    expected = list(make_loader(samples).batches(1))[2:]
    assert same(list(make_loader(samples, ImageCache(samples, 2**20)).batches(1, skip=2)), expected)


@pytest.mark.parametrize("pipeline", [AUGMENT, CROP], ids=["resized", "as they are"])
def test_an_image_is_opened_once(samples: list[Sample], pipeline: list[Any]) -> None:
    found = epochs(make_loader(samples, ImageCache(samples, 2**20), pipeline), 4)
    seen = {index for epoch in found for batch in epoch for index in batch.indices.tolist()}
    assert sorted(Drawing.opened) == sorted(seen)


def test_another_loader_of_the_same_images_opens_none(samples: list[Sample]) -> None:
    cache = ImageCache(samples, 2**20)
    epochs(make_loader(samples, cache), 6)
    assert sorted(Drawing.opened) == list(range(24))
    expected = epochs(make_loader(samples[4:20]))
    Drawing.opened.clear()
    assert all(map(same, epochs(make_loader(samples[4:20], cache)), expected))
    assert not Drawing.opened


def test_images_that_the_cache_was_not_made_for_are_read(samples: list[Sample]) -> None:
    expected = epochs(make_loader(samples))
    assert all(map(same, epochs(make_loader(samples, ImageCache(samples[:12], 2**20))), expected))


def test_no_more_is_kept_than_there_is_room_for(samples: list[Sample]) -> None:
    cache = ImageCache(samples, 5 * IMAGE + IMAGE // 2)
    epochs(make_loader(samples, cache))
    assert cache.used == 5 * IMAGE
    assert sum(cache.get(row) is not None for row in range(24)) == 5


class Invert:
    """A fixed transform, as a plugin may have one."""

    resizes = False
    random = False

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, image: Tensor) -> Tensor:
        self.calls += 1
        return 255 - image


def test_fixed_transforms_before_the_first_random_one_are_called_once_an_image(samples: list[Sample]) -> None:
    first, last = Invert(), Invert()
    pipeline = [first, Resize(*SIZE), Flip(0.5), last]
    expected = epochs(make_loader(samples, pipeline=pipeline))
    first.calls = last.calls = 0
    assert all(map(same, epochs(make_loader(samples, ImageCache(samples, 2**20), pipeline)), expected))
    indices = [index for epoch in expected for batch in epoch for index in batch.indices.tolist()]
    assert (first.calls, last.calls) == (len(set(indices)), len(indices))


def test_what_a_transform_does_to_an_image_is_not_done_to_the_kept_one() -> None:
    cache = ImageCache([Sample(Drawing(0))], 1000)
    cache.put(0, noise(0))
    cache.get(0).zero_()  # type: ignore[union-attr]
    assert torch.equal(cache.get(0), noise(0))  # type: ignore[arg-type]


def put_all(cache: ImageCache, order: list[int]) -> None:
    for row in order:
        cache.put(row, noise(row, 1 + row, 7))


def check_all(cache: ImageCache, rows: int) -> None:
    for row in range(rows):
        assert torch.equal(cache.get(row), noise(row, 1 + row, 7))  # type: ignore[arg-type]


def test_processes_that_keep_the_same_images_at_once_do_not_disturb_each_other() -> None:
    cache = ImageCache([Sample(Drawing(number)) for number in range(40)], 2**20)
    orders = [list(range(40)), list(range(39, -1, -1)), [*range(20, 40), *range(20)]]
    processes = [FORK.Process(target=put_all, args=(cache, order)) for order in orders]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    check_all(cache, 40)


def test_spawned_processes_share_it() -> None:
    cache = ImageCache([Sample(Drawing(0)), Sample(Drawing(1))], 1000)
    process = multiprocessing.get_context("spawn").Process(target=cache.put, args=(1, noise(1)))
    process.start()
    process.join()
    assert process.exitcode == 0
    assert cache.get(0) is None and torch.equal(cache.get(1), noise(1))  # type: ignore[arg-type]


def test_a_loader_of_spawned_processes_uses_it(tmp_path: Path) -> None:
    samples = []
    for number in range(12):
        Drawing(number).open().save(tmp_path / f"{number}.png")
        samples.append(Sample(tmp_path / f"{number}.png", number // 4))
    expected = epochs(make_loader(samples))
    cache = ImageCache(samples, 2**20)
    loader = make_loader(samples, cache, workers=1)
    loader.loader.multiprocessing_context = "spawn"
    assert all(map(same, epochs(loader), expected))
    assert cache.used >= 6 * IMAGE


def die_with_the_lock(cache: ImageCache) -> None:
    with cache._alone():
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_process_that_is_killed_takes_no_lock_with_it() -> None:
    cache = ImageCache([Sample(Drawing(0))], 1000)
    process = FORK.Process(target=die_with_the_lock, args=(cache,))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    cache.put(0, noise(0))
    assert torch.equal(cache.get(0), noise(0))  # type: ignore[arg-type]


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="the system does not tell")
@pytest.mark.parametrize("anonymous", [True, False])
def test_there_is_no_file_that_could_be_left_behind(anonymous: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not anonymous:  # a system that has no such memory
        monkeypatch.delattr(os, "memfd_create", raising=False)
    cache = ImageCache([Sample(Drawing(0))], 1000)
    assert os.readlink(f"/proc/self/fd/{cache._file}").endswith(" (deleted)")
    cache.put(0, noise(0))
    assert torch.equal(cache.get(0), noise(0))  # type: ignore[arg-type]


def test_the_memory_is_given_back_with_the_cache() -> None:
    cache = ImageCache([], 1000)
    file = cache._file
    os.fstat(file)
    del cache
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(file)


@pytest.mark.parametrize(
    ("gib", "processes", "expected"),
    [("auto", 1, 4), ("auto", 2, 2), (0, 1, 0), (0.5, 1, 0.5), (8, 4, 2), (100, 1, 12), (float("inf"), 3, 4)],
)
def test_how_much_room_there_is(
    gib: float | str, processes: int, expected: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_module, "free_memory", lambda: 12 * 2**30)
    assert cache_room(gib, processes) == expected * 2**30


@pytest.mark.skipif(not Path("/proc/meminfo").is_file(), reason="not known")
def test_free_memory_is_a_part_of_what_there_is() -> None:
    assert 0 < free_memory() < os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


@pytest.mark.parametrize(("option", "kept"), [("auto", True), (0.001, True), (0, False)])
def test_the_recipe_says_whether_images_are_kept(
    toy_recipe: Path, tmp_path: Path, option: float | str, kept: bool
) -> None:
    loaded = load_recipe(toy_recipe)
    loaded = evolve(loaded, recipe=evolve(loaded.recipe, input=evolve(loaded.recipe.input, cache=option)))
    data = read_data(loaded)
    run = assemble(loaded, data, tmp_path / "run", lambda model, epoch: None)
    assert (run.make_loader(data.train).loader.dataset.cache is not None) == kept
