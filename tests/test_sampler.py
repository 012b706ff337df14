"""The identity-balanced sampler."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reidcore.builtin.modules.samplers import IdentityBalanced
from reidcore.builtin.samplers import IdentityBalanced as Config
from reidcore.errors import DataError

images_of_small_sets = st.lists(st.tuples(st.integers(0, 4), st.integers(-1, 3)), min_size=1, max_size=30)


def make(
    labels: Sequence[int], cameras: Sequence[int] | None = None, p: int = 2, k: int = 4, seed: int = 0
) -> IdentityBalanced:
    return IdentityBalanced(
        np.array(labels), np.array(cameras if cameras is not None else [0] * len(labels)), p, k, seed
    )


def epoch(sampler: IdentityBalanced, number: int = 0) -> list[list[int]]:
    return [batch.tolist() for batch in sampler.batches(number)]


def groups(batches: list[list[int]], k: int) -> list[list[int]]:
    return [batch[start : start + k] for batch in batches for start in range(0, len(batch), k)]


@settings(deadline=None, max_examples=150)
@given(images=images_of_small_sets, p=st.integers(1, 3), k=st.integers(1, 6), number=st.integers(0, 3))
def test_every_batch_is_p_identities_with_k_images_each_that_stand_together(
    images: list[tuple[int, int]], p: int, k: int, number: int
) -> None:
    labels, cameras = [label for label, _ in images], [camera for _, camera in images]
    p = min(p, len(set(labels)))
    sampler = make(labels, cameras, p, k)
    batches = epoch(sampler, number)
    assert len(batches) == len(sampler) >= 1
    for batch in batches:
        found = [{labels[index] for index in group} for group in groups([batch], k)]
        assert len(batch) == p * k
        assert all(len(group) == 1 for group in found)
        assert len(set.union(*found)) == p


@settings(deadline=None, max_examples=150)
@given(images=images_of_small_sets, k=st.integers(1, 6))
def test_an_image_comes_twice_in_a_group_only_where_its_identity_has_too_few(
    images: list[tuple[int, int]], k: int
) -> None:
    labels = [label for label, _ in images]
    sampler = make(labels, [camera for _, camera in images], 1, k)
    for group in groups(epoch(sampler), k):
        assert len(set(group)) == min(k, labels.count(labels[group[0]]))


@settings(deadline=None, max_examples=150)
@given(images=images_of_small_sets, p=st.integers(1, 3), k=st.integers(1, 5))
def test_every_image_is_seen_unless_its_identity_fills_more_groups_than_there_are_batches(
    images: list[tuple[int, int]], p: int, k: int
) -> None:
    labels = [label for label, _ in images]
    p = min(p, len(set(labels)))
    sampler = make(labels, [camera for _, camera in images], p, k)
    seen = {index for batch in epoch(sampler) for index in batch}
    for index, label in enumerate(labels):
        if -(-labels.count(label) // k) <= len(sampler):
            assert index in seen


def test_every_image_of_a_balanced_set_is_seen_exactly_once() -> None:
    labels = [identity for identity in range(6) for _ in range(8)]
    seen = Counter(index for batch in epoch(make(labels, p=3, k=4)) for index in batch)
    assert seen == dict.fromkeys(range(48), 1)


def test_the_number_of_batches_of_a_hand_case() -> None:
    # with K = 4: 9 images fill 3 groups, 4 fill 1, 1 fills 1; 5 groups in batches of 2 are 3 batches
    assert len(make([0] * 9 + [1] * 4 + [2], p=2, k=4)) == 3


def test_all_k_images_are_from_different_cameras_where_the_cameras_are_even() -> None:
    labels = [identity for identity in range(3) for _ in range(15)]
    cameras = [position % 5 for position in range(45)]
    sampler = make(labels, cameras, p=3, k=4)
    for number in range(20):
        for group in groups(epoch(sampler, number), 4):
            assert len({cameras[index] for index in group}) == 4


def test_all_k_images_are_from_different_cameras_where_one_camera_has_one_image_only() -> None:
    cameras = [0, 1, 1, 2, 2]
    sampler = make([0] * 5, cameras, p=1, k=2)
    for number in range(50):
        assert all(len({cameras[index] for index in group}) == 2 for group in groups(epoch(sampler, number), 2))


@settings(deadline=None, max_examples=150)
@given(cameras=st.lists(st.integers(0, 4), min_size=1, max_size=20), k=st.integers(1, 5), number=st.integers(0, 9))
def test_all_k_images_are_from_different_cameras_unless_one_has_more_images_than_there_are_groups(
    cameras: list[int], k: int, number: int
) -> None:
    sampler = make([0] * len(cameras), cameras, p=1, k=k)
    counts = Counter(cameras)
    if len(counts) >= k and max(counts.values()) <= len(sampler):
        for group in groups(epoch(sampler, number), k):
            assert len({cameras[index] for index in group}) == k


def test_a_group_is_topped_up_from_other_cameras_first() -> None:
    # 5 images make groups of 3 and 2; whatever is dealt, all 4 cameras can be had
    cameras = [0, 0, 1, 2, 3]
    sampler = make([0] * 5, cameras, p=1, k=4)
    for number in range(50):
        assert all(len({cameras[index] for index in group}) == 4 for group in groups(epoch(sampler, number), 4))


def test_the_images_of_a_frequent_camera_are_spread_over_the_groups() -> None:
    # 8 images of camera 0 and 4 others in 3 groups: 3, 3 and 2 of camera 0
    cameras = [0] * 8 + [1, 2, 3, 4]
    for number in range(20):
        found = groups(epoch(make([0] * 12, cameras, p=1, k=4), number), 4)
        assert sorted(sum(cameras[index] == 0 for index in group) for group in found) == [2, 3, 3]


def test_a_single_image_is_repeated() -> None:
    assert epoch(make([5], p=1, k=3)) == [[0, 0, 0]]


def test_the_same_seed_and_epoch_give_the_same_batches() -> None:
    labels = [position % 7 for position in range(60)]
    assert epoch(make(labels, p=3, seed=4), 2) == epoch(make(labels, p=3, seed=4), 2)


def test_an_epoch_does_not_depend_on_the_ones_before() -> None:
    labels = [position % 7 for position in range(60)]
    sampler = make(labels, p=3)
    for number in range(3):
        epoch(sampler, number)
    assert epoch(sampler, 3) == epoch(make(labels, p=3), 3)


@pytest.mark.parametrize(("seed", "number"), [(0, 1), (1, 0)])
def test_another_seed_or_epoch_gives_other_batches(seed: int, number: int) -> None:
    labels = [position % 7 for position in range(60)]
    assert epoch(make(labels, p=3, seed=seed), number) != epoch(make(labels, p=3), 0)


def test_the_numpy_generator_is_left_alone() -> None:
    np.random.seed(0)
    expected = np.random.random()
    np.random.seed(0)
    epoch(make([0, 0, 1, 1]))
    assert np.random.random() == expected


def test_identities_are_drawn_evenly_where_all_have_to_repeat() -> None:
    labels = [identity for identity in range(10) for _ in range(4)]  # 10 groups in batches of 4: 2 groups are extra
    extra = Counter()
    for number in range(300):
        seen = Counter(labels[index] for batch in epoch(make(labels, p=4, k=4), number) for index in batch[::4])
        extra.update({label: count - 1 for label, count in seen.items()})
    # each identity is expected 60 times, with a standard deviation of sqrt(300 · 0.2 · 0.8), about 7
    assert sum(extra.values()) == 600 and min(extra.values()) > 30 and max(extra.values()) < 90


def test_fewer_identities_than_a_batch_takes_is_an_error_that_says_what_to_write() -> None:
    with pytest.raises(DataError) as caught:
        Config(identities=4, instances=2).build(np.array([0, 0, 1, 2]), np.zeros(4, int), seed=0)
    assert str(caught.value) == (
        "sampler: a batch takes 4 identities, but there are only 3 to train on; lower sampler.identities to at most 3"
    )
