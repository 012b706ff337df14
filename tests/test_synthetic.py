"""The synthetic data set: reproducible, lazy, and a fair problem."""

import hashlib
import pickle
import subprocess
import sys
import time
from typing import Any

import numpy as np
import pytest

from reidcore.builtin.modules import synthetic
from reidcore.builtin.modules.synthetic import DOMAINS, Figure, splits
from reidcore.types import Sample, Splits


def make(**changes: Any) -> Splits:
    options: dict[str, Any] = dict(
        identities=4,
        test_identities=3,
        cameras=3,
        images=2,
        height=64,
        width=32,
        occluded=0.0,
        domain="street",
        seed=0,
    )
    return splits(**(options | changes))


def pixels(sample: Sample) -> np.ndarray:
    assert isinstance(sample.image, Figure)
    return np.asarray(sample.image.open())


def occluded(sample: Sample) -> bool:
    assert isinstance(sample.image, Figure)
    return sample.image.occluded


def digest(samples: Any) -> str:
    return hashlib.sha256(b"".join(pixels(sample).tobytes() for sample in samples)).hexdigest()


def test_counts_and_names() -> None:
    data = make()
    assert (len(data.train), len(data.query), len(data.gallery)) == (4 * 3 * 2, 3 * 3, 3 * 3 * 1)
    assert data.train[-1].name == "synthetic/train/0006_c2_0001"
    assert len({sample.name for part in (data.train, data.query, data.gallery) for sample in part}) == 42
    assert {sample.camera for sample in data.train} == {0, 1, 2}


@pytest.mark.parametrize("domain", DOMAINS)
@pytest.mark.parametrize(("height", "width"), [(64, 32), (97, 50), (16, 8)])
def test_images_are_rgb_of_the_size_asked_for(domain: str, height: int, width: int) -> None:
    for sample in make(domain=domain, height=height, width=width, occluded=1.0).train[:6]:
        assert isinstance(sample.image, Figure)
        image = sample.image.open()
        assert (image.mode, image.size) == ("RGB", (width, height))


@pytest.mark.parametrize("domain", DOMAINS)
def test_same_pixels_in_any_order(domain: str) -> None:
    samples = make(domain=domain, occluded=0.5).train
    forwards = [pixels(sample) for sample in samples]
    synthetic._camera.cache_clear()
    backwards = [pixels(sample) for sample in reversed(samples)]
    assert all(np.array_equal(a, b) for a, b in zip(forwards, reversed(backwards), strict=True))


def test_same_pixels_in_another_process() -> None:
    script = (
        "import hashlib, numpy as np\n"
        "from reidcore.builtin.modules.synthetic import splits\n"
        "data = splits(identities=4, test_identities=3, cameras=3, images=2, height=64, width=32,\n"
        "              occluded=0.5, domain='night', seed=7)\n"
        "drawn = b''.join(np.asarray(sample.image.open()).tobytes() for sample in data.train)\n"
        "print(hashlib.sha256(drawn).hexdigest())\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == digest(make(occluded=0.5, domain="night", seed=7).train)


def test_nothing_is_drawn_before_it_is_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: Figure) -> None:
        raise AssertionError("drawn")

    monkeypatch.setattr(synthetic, "_draw", refuse)
    start = time.perf_counter()
    data = make(identities=10_000, height=256, width=128)
    assert time.perf_counter() - start < 10  # drawing them would take minutes
    assert len(data.train) == 60_000
    with pytest.raises(AssertionError, match="drawn"):
        pixels(data.train[0])


def test_figures_pickle() -> None:
    sample = make(occluded=0.5).gallery[3]
    again = pickle.loads(pickle.dumps(sample))
    assert again == sample
    assert np.array_equal(pixels(again), pixels(sample))


def test_nobody_is_both_trained_and_tested_on() -> None:
    data = make(identities=50, test_identities=70)
    train = {sample.identity for sample in data.train}
    assert len(train) == 50
    assert train.isdisjoint(sample.identity for sample in (*data.query, *data.gallery))


def test_the_test_does_not_depend_on_the_size_of_the_training_set() -> None:
    assert make(identities=4).query == make(identities=40).query
    assert make(test_identities=3).train == make(test_identities=30).train


@pytest.mark.parametrize("cameras", [2, 3])
def test_every_query_has_a_match_from_another_camera(cameras: int) -> None:
    data = make(cameras=cameras)
    assert not set(data.query) & set(data.gallery)
    for query in data.query:
        assert any(item.identity == query.identity and item.camera != query.camera for item in data.gallery)


def test_share_of_occluded_images() -> None:
    for share in (0.0, 0.3, 1.0):
        hidden = [occluded(sample) for sample in make(identities=300, occluded=share).train]
        assert np.mean(hidden) == pytest.approx(share, abs=0.05)


def test_occluders_change_only_the_images_they_are_on() -> None:
    for clear, mixed in zip(make(identities=20).train, make(identities=20, occluded=0.5).train, strict=True):
        assert np.array_equal(pixels(clear), pixels(mixed)) != occluded(mixed)


def test_seeds_and_domains_differ() -> None:
    drawn = [digest(make(seed=seed, domain=domain).train) for seed in (0, 1) for domain in DOMAINS]
    assert len(set(drawn)) == len(drawn)


def test_a_night_is_darker_than_snow() -> None:
    night, street, snow = (
        np.mean([pixels(sample) for sample in make(domain=domain).train]) for domain in ("night", "street", "snow")
    )
    assert night < street - 20 < street + 20 < snow


def test_people_are_recognisable_by_their_clothes_and_not_by_their_pixels() -> None:
    """Where the chest is, one person's images by two cameras differ less in colour than two people's do."""
    data = make(identities=60, cameras=4, images=2, height=64, width=32)
    chest = np.array([pixels(sample)[18:28, 12:20].mean((0, 1)) for sample in data.train])
    who, where = (np.array([getattr(s, name) for s in data.train]) for name in ("identity", "camera"))
    chest -= np.array([chest[where == camera].mean(0) for camera in range(4)])[where]  # without the colour cast
    apart = np.linalg.norm(chest[:, None] - chest, axis=2)
    across = where[:, None] != where
    same = who[:, None] == who
    assert apart[same & across].mean() < 0.6 * apart[~same & across].mean()
    assert np.mean(apart[~same & across] < np.median(apart[same & across])) > 0.02  # but colours are shared


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cameras": 1}, "cameras is 1; expected at least 2"),
        ({"images": 1}, "images is 1; expected at least 2"),
        ({"identities": 0}, "identities is 0; expected at least 1"),
        ({"test_identities": 0}, "test_identities is 0; expected at least 1"),
        ({"height": 4}, "height is 4; expected at least 16"),
        ({"width": 4}, "width is 4; expected at least 8"),
        ({"seed": -1}, "seed is -1; expected at least 0"),
        ({"occluded": 1.5}, "occluded is 1.5; expected a share between 0 and 1"),
        ({"domain": "desert"}, "domain is 'desert'; expected one of street, night, snow, indoor"),
    ],
)
def test_bad_options_are_explained(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        make(**changes)
    assert str(caught.value) == message
