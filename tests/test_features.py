"""Where features are while they are worked on."""

import errno
import os
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from torch import nn

from reidcore.errors import RunError
from reidcore.features import KeptFeatures, room_for
from reidcore.retrieval.extract import extract
from reidcore.types import Output, Sample

SHAPES = {"embeddings": ((3, 4), np.dtype(np.float32)), "extra.cells": ((3, 2, 5), np.dtype(np.float16))}
BYTES = 3 * 4 * 4 + 3 * 2 * 5 * 2


class Drawn:
    """A picture of one grey."""

    def __init__(self, grey):
        self.grey = grey

    @property
    def name(self):
        return f"grey {self.grey}"

    def __repr__(self):
        return f"Drawn({self.grey})"

    def open(self):
        from PIL import Image

        return Image.new("RGB", (4, 6), (self.grey,) * 3)


class Means(nn.Module):
    """A model whose embedding and extras are the image's mean."""

    def forward(self, images):
        mean = images.float().mean((1, 2, 3))[:, None]
        extras = {"cells": mean[:, :, None].expand(-1, 2, 3).half(), "scale": mean.double()}
        return Output(embedding=mean.expand(-1, 2), before={}, after={}, logits={}, extras=extras)


SAMPLES = [Sample(Drawn(grey), identity, 7) for identity, grey in enumerate((10, 20, 30, 40, 50))]
OPTIONS = {"size": (6, 4), "batch": 2, "workers": 0}


def made(extras, room):
    return extract(Means(), SAMPLES, extras=extras, room=room, **OPTIONS)


def test_room_is_in_memory_up_to_a_size_and_beyond_it_in_a_file(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    room = room_for(BYTES * 2 - 1, tmp_path)
    small, large = room(SHAPES), room(SHAPES)  # the second is too much
    for name, (shape, dtype) in SHAPES.items():
        assert small[name].shape == large[name].shape == shape
        assert small[name].dtype == large[name].dtype == dtype
        assert isinstance(large[name], np.memmap)
        assert not isinstance(small[name], np.memmap)
        large[name][:] = 3
    assert all((array == 3).all() for array in large.values())
    assert list(tmp_path.iterdir()) == []  # the file has no name, and goes with the arrays


def test_a_full_disk_is_an_error_and_no_crash(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(
        RunError, match=f"cannot write a temporary file in {tmp_path}: No space left.*evaluation.memory"
    ):
        room_for(0)(SHAPES)
    kept = KeptFeatures(tmp_path / "features", "model")
    with pytest.raises(RunError, match="No space left"):
        kept.get(SAMPLES, (), (), made)
    assert list((tmp_path / "features").iterdir()) == []


@pytest.mark.parametrize("memory", [0, 1 << 30])
def test_features_are_the_same_wherever_they_are(memory):
    found = extract(Means(), SAMPLES, room=room_for(memory), **OPTIONS)
    np.testing.assert_array_equal(found.embeddings, np.array([10, 20, 30, 40, 50])[:, None].repeat(2, 1))
    assert found.extras["cells"].shape == (5, 2, 3)
    assert found.extras["cells"].dtype == np.float16
    assert found.extras["scale"].dtype == np.float32
    assert (found.extras["cells"][:, 1, 2] == [10, 20, 30, 40, 50]).all()
    assert found.identities.tolist() == [0, 1, 2, 3, 4]
    assert set(found.cameras) == {7}


def test_only_the_wanted_extras_are_kept():
    assert extract(Means(), SAMPLES, extras=["scale"], **OPTIONS).extras.keys() == {"scale"}
    assert extract(Means(), SAMPLES, extras=[], **OPTIONS).extras == {}


def test_transforms_depend_on_an_images_place_alone():
    def noise(image):
        return (image + torch.randint(0, 100, ())).to(torch.uint8)

    def embeddings(samples, **options):
        return extract(Means(), samples, **OPTIONS | {"transforms": [noise]} | options).embeddings[:, 0]

    whole = embeddings(SAMPLES)
    assert len(set(whole - [10, 20, 30, 40, 50])) > 1
    np.testing.assert_array_equal(embeddings(SAMPLES, batch=5), whole)
    np.testing.assert_array_equal(embeddings(SAMPLES, workers=2), whole)
    np.testing.assert_array_equal(embeddings(SAMPLES[:3]), whole[:3])
    from reidcore.types import World

    shares = [embeddings(SAMPLES, world=World(rank, 2)) for rank in range(2)]
    np.testing.assert_array_equal(np.concatenate(shares), whole)


def test_kept_features_come_from_a_mapped_safetensors_file(tmp_path):
    kept, calls = KeptFeatures(tmp_path / "features", "model"), []

    def counted(extras, room):
        calls.append(1)
        return made(extras, room)

    everything = ("cells", "scale")
    first, second = kept.get(SAMPLES, "a", everything, counted), kept.get(SAMPLES, "a", everything, counted)
    assert len(calls) == 1
    for side in (first, second):
        assert isinstance(side.embeddings, np.ndarray)
        np.testing.assert_array_equal(side.embeddings[:, 0], [10, 20, 30, 40, 50])
        assert (side.extras["cells"][:, 0, 0] == [10, 20, 30, 40, 50]).all()
        assert side.paths[2] == "grey 30"
    (file,) = (tmp_path / "features").iterdir()
    arrays = load_file(file)
    assert {name: array.dtype for name, array in arrays.items()} == {
        "embeddings": np.float32,
        "extra.cells": np.float16,
        "extra.scale": np.float32,
    }
    kept.get(SAMPLES, "b", (), counted)
    KeptFeatures(tmp_path / "features", "another model").get(SAMPLES, "a", (), counted)
    assert len(calls) == 3


def test_extras_are_added_to_the_kept_features_when_they_are_needed(tmp_path):
    kept = KeptFeatures(tmp_path, "model")
    for wanted, there in (
        ((), set()),
        (("scale",), {"scale"}),
        (("cells",), {"scale", "cells"}),
        ((), {"scale", "cells"}),
    ):
        assert kept.get(SAMPLES, "a", wanted, made).extras.keys() == there
        assert len(list(tmp_path.iterdir())) == 1


def test_two_that_extract_at_once_do_not_disturb_each_other(tmp_path):
    kept = KeptFeatures(tmp_path, "model")

    def slow(extras, room):
        found = made(extras, room)
        kept.get(SAMPLES, "a", (), made)  # by another process meanwhile
        return found

    assert kept.get(SAMPLES, "a", ("cells",), slow).embeddings[:, 0].tolist() == [10, 20, 30, 40, 50]
    (file,) = tmp_path.iterdir()
    assert load_file(file).keys() == {"embeddings", "extra.cells"}


def test_what_a_killed_process_left_is_removed_after_a_day(tmp_path):
    old, new = tmp_path / ".old.partial", tmp_path / ".new.partial"
    for file in (old, new):
        file.touch()
    os.utime(old, (time.time() - 90_000,) * 2)
    KeptFeatures(tmp_path, "model").get(SAMPLES, "a", (), made)
    assert new.exists()
    assert not old.exists()


def test_damaged_features_are_made_again_and_failed_ones_leave_nothing(tmp_path):
    kept = KeptFeatures(tmp_path, "model")

    def failing(extras, room):
        room(SHAPES)
        raise RunError("stopped")

    with pytest.raises(RunError, match="stopped"):
        kept.get(SAMPLES, "a", (), failing)
    assert list(tmp_path.iterdir()) == []
    kept.get(SAMPLES, "a", (), made)
    (file,) = Path(tmp_path).iterdir()
    file.write_bytes(file.read_bytes()[:-1])
    again = kept.get(SAMPLES, "a", (), made)
    np.testing.assert_array_equal(again.embeddings[:, 0], [10, 20, 30, 40, 50])
    assert load_file(file)["embeddings"].shape == (5, 2)
