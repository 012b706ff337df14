"""Samplers."""

from collections import Counter
from collections.abc import Callable, Sequence
from itertools import groupby

import numpy as np
import pytest
import tomli
from hypothesis import given, settings
from hypothesis import strategies as st

from reidcore.assemble import assemble, read_data
from reidcore.builtin import samplers as configs
from reidcore.builtin.modules.samplers import ClassBalanced, IdentityBalanced, Naive, Shuffle, WeightedSets
from reidcore.errors import DataError
from reidcore.kinds import Sampler
from reidcore.recipe import load_recipe

images_of_small_sets = st.lists(st.tuples(st.integers(0, 4), st.integers(-1, 3)), min_size=1, max_size=30)


def make(
    labels: Sequence[int], cameras: Sequence[int] | None = None, p: int = 2, k: int = 4, seed: int = 0
) -> IdentityBalanced:
    return IdentityBalanced(
        np.array(labels), np.array(cameras if cameras is not None else [0] * len(labels)), p, k, seed
    )


def epoch(sampler: Sampler, number: int = 0) -> list[list[int]]:
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
        configs.IdentityBalanced(identities=4, instances=2).build(np.array([0, 0, 1, 2]), np.zeros(4, int), seed=0)
    assert str(caught.value) == (
        "sampler: a batch takes 4 identities, but there are only 3 to train on; lower sampler.identities to at most 3"
    )


# the promises that all samplers make

MAKE: dict[str, Callable[..., Sampler]] = {
    "identity-balanced": lambda labels, seed=0: IdentityBalanced(labels, np.zeros(len(labels), int), 2, 3, seed),
    "naive": lambda labels, seed=0: Naive(labels, 2, 3, seed),
    "weighted-sets": lambda labels, seed=0: WeightedSets(labels, labels % 2, [3, 1], 2, 3, seed),
    "class-balanced": lambda labels, seed=0: ClassBalanced(labels, 6, seed),
    "shuffle": lambda labels, seed=0: Shuffle(labels, 6, seed),
}
every = pytest.mark.parametrize("make_sampler", MAKE.values(), ids=MAKE)


def test_every_sampler_of_the_core_is_tested_here() -> None:
    assert set(MAKE) == {component.name for component in configs.reidcore_samplers()}


@every
@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_the_length_is_that_of_every_epoch_and_images_of_a_class_stand_together(
    make_sampler: Callable[..., Sampler], data: st.DataObject
) -> None:
    # any images beside 2 of either parity, which is what the samplers ask for at least
    some = st.lists(st.integers(-1, 6), max_size=30)
    labels = np.array([*data.draw(some), 0, 1, 2, 3])
    sampler = make_sampler(labels, seed=data.draw(st.integers(0, 3)))
    for number in range(3):
        batches = epoch(sampler, number)
        assert len(batches) == len(sampler) >= 1
        for batch in batches:
            blocks = [label for label, _ in groupby(labels[batch])]
            assert len(blocks) == len(set(blocks))


@every
def test_an_epoch_is_a_function_of_seed_and_number_only(make_sampler: Callable[..., Sampler]) -> None:
    labels = np.arange(60) % 8
    used = make_sampler(labels)
    for number in range(3):
        epoch(used, number)
    assert epoch(used, 3) == epoch(make_sampler(labels), 3)
    assert epoch(used, 3) != epoch(used, 2)
    assert epoch(used, 3) != epoch(make_sampler(labels, seed=1), 3)


@every
def test_unlabelled_images_are_left_out_but_by_the_plain_shuffle(make_sampler: Callable[..., Sampler]) -> None:
    labels = np.array([-1, 0, 0, 1, -1, 1, 2, 2, 3, 3, -1, -1] * 2)
    found = {labels[index] for number in range(5) for batch in epoch(make_sampler(labels), number) for index in batch}
    assert found == {0, 1, 2, 3} | ({-1} if isinstance(make_sampler(labels), Shuffle) else set())


@pytest.mark.parametrize("name", ["identity-balanced", "naive", "class-balanced"])
def test_unlabelled_images_alone_are_an_error(name: str) -> None:
    with pytest.raises(DataError, match="no image to train on is labelled; only the sampler 'shuffle' takes such imag"):
        MAKE[name](np.full(9, -1))


@every
@settings(deadline=None, max_examples=60)
@given(extra=st.lists(st.integers(0, 6), max_size=30))
def test_no_image_comes_twice_while_its_class_has_others(
    make_sampler: Callable[..., Sampler], extra: list[int]
) -> None:
    labels = np.array([0, 1, 2, 3, *extra])
    sampler = make_sampler(labels)
    for batch in epoch(sampler) if not isinstance(sampler, ClassBalanced) else ():
        for label, group in groupby(batch, key=lambda index: labels[index]):
            images = list(group)
            assert len(set(images)) == min(len(images), (labels == label).sum())


# P x K, whatever the cameras


@settings(deadline=None, max_examples=100)
@given(labels=st.lists(st.integers(-1, 5), min_size=1, max_size=40), p=st.integers(1, 3), k=st.integers(1, 6))
def test_every_naive_batch_is_p_identities_with_k_images_each(labels: list[int], p: int, k: int) -> None:
    found = set(labels) - {-1}
    if len(found) < p:
        return
    sampler = Naive(np.array(labels), p, k, 0)
    assert len(sampler) == max(1, sum(label >= 0 for label in labels) // (p * k))
    for batch in epoch(sampler):
        names = [{labels[index] for index in group} for group in groups([batch], k)]
        assert len(batch) == p * k
        assert all(len(name) == 1 for name in names)
        assert len(set.union(*names)) == p


@settings(deadline=None, max_examples=60)
@given(size=st.integers(1, 40), k=st.integers(1, 6), number=st.integers(0, 5))
def test_a_round_shows_no_image_twice_and_all_but_what_fills_no_group(size: int, k: int, number: int) -> None:
    shown = [index for batch in epoch(Naive(np.zeros(size, int), 1, k, 0), number) for index in batch]
    if size >= k:
        assert len(set(shown)) == len(shown) == size - size % k
    else:
        counts = Counter(shown)
        assert set(counts) == set(range(size)) and max(counts.values()) - min(counts.values()) <= 1


def test_every_image_is_shown_once_where_each_identity_fills_one_group() -> None:
    labels = np.arange(48) % 12
    assert Counter(index for batch in epoch(Naive(labels, 3, 4, 0)) for index in batch) == dict.fromkeys(range(48), 1)


def test_what_was_left_out_of_an_epoch_comes_in_another() -> None:
    sampler = Naive(np.array([0] * 7 + [1] * 5), 2, 4, 0)
    assert {index for number in range(30) for batch in epoch(sampler, number) for index in batch} == set(range(12))


def test_a_round_ends_and_another_begins_when_too_few_identities_are_left() -> None:
    labels = np.array([0] * 40 + [1, 2, 3])  # 5 batches of 2 x 4, but 2 groups at most can stand beside another's
    sampler = Naive(labels, 2, 4, 0)
    assert [len({labels[index] for index in batch}) for batch in epoch(sampler)] == [2] * 5


def test_fewer_identities_than_a_naive_batch_takes_is_an_error() -> None:
    with pytest.raises(DataError, match="takes 4 identities, but there are only 3 to train on; lower"):
        configs.Naive(identities=4, instances=2).build(np.array([0, 0, 1, 2, -1]), np.zeros(5, int), seed=0)


# several data sets


def weighted(labels: Sequence[int], sources: Sequence[int], weights: Sequence[float], p: int, k: int) -> WeightedSets:
    return WeightedSets(np.array(labels), np.array(sources), weights, p, k, 0)


@settings(deadline=None, max_examples=60)
@given(
    sizes=st.lists(st.integers(8, 20), min_size=1, max_size=4),
    weights=st.lists(st.floats(0.1, 10), min_size=4, max_size=4),
    p=st.integers(1, 8),
    k=st.integers(1, 3),
)
def test_the_identities_of_an_epoch_are_shared_by_the_weights(
    sizes: list[int], weights: list[float], p: int, k: int
) -> None:
    sources = np.repeat(np.arange(len(sizes)), np.array(sizes) * 6)
    labels = np.arange(len(sources)) // 6  # 6 images an identity
    sampler = weighted(labels.tolist(), sources.tolist(), weights[: len(sizes)], p, k)
    taken = np.zeros(len(sizes))
    batches = epoch(sampler)
    assert len(batches) == max(1, len(labels) // (p * k))
    for number, batch in enumerate(batches, 1):
        first = np.array(batch).reshape(p, k)[:, 0]
        assert len(set(labels[batch])) == p
        assert (labels[batch].reshape(p, k) == labels[first][:, None]).all()
        taken += np.bincount(sources[first], minlength=len(sizes))
        share = np.array(weights[: len(sizes)]) / sum(weights[: len(sizes)])
        assert np.abs(taken - number * p * share).max() < 2


def test_two_thirds_of_the_identities_are_from_the_first_of_two_sets_weighted_2_to_1() -> None:
    labels = np.arange(200) // 4
    sources = (labels >= 10).astype(int)  # the smaller one has the larger share
    sampler = weighted(labels.tolist(), sources.tolist(), [2, 1], p=4, k=2)
    counts = [8 - int(sources[batch].sum()) for batch in epoch(sampler)]
    assert set(counts) == {4, 6}  # of 4 identities 2 2/3 are due: 2 or 3, with 2 images each
    assert sum(counts) / (8 * len(counts)) == pytest.approx(2 / 3, abs=0.01)


def test_a_batch_mixes_the_sets_so_that_processes_get_of_each() -> None:
    labels = np.arange(80) // 4
    sampler = weighted(labels.tolist(), (labels % 2).tolist(), [1, 1], p=8, k=2)
    assert len({tuple(labels[batch] % 2) for batch in epoch(sampler)}) > 1


@pytest.mark.parametrize("weights", [[1.0], [1.0, 1.0, 1.0]])
def test_a_number_of_weights_other_than_that_of_the_sets_is_an_error(weights: list[float]) -> None:
    with pytest.raises(DataError) as caught:
        weighted([0, 0, 1, 1], [0, 0, 1, 1], weights, 2, 2)
    assert str(caught.value) == (
        f"sampler.weights: found {len(weights)} numbers, but the images come from 2 [[train]] tables; expected one for "
        "each"
    )


def test_a_set_with_too_few_identities_for_its_share_is_an_error() -> None:
    with pytest.raises(DataError) as caught:
        weighted([0, 1, 2, 3, 4, 4], [0, 0, 0, 0, 1, 1], [1, 3], 4, 2)
    assert str(caught.value) == (
        "sampler: a batch takes up to 3 identities of train.1, which has only 1 to train on; lower sampler.weights.1 "
        "or sampler.identities"
    )


def test_weights_are_of_the_tables_that_have_labelled_images() -> None:
    # the first table is a target, whose images are not sampled
    sampler = weighted([0, 0, 1, 1, 2, 2, 3, 3], [1, 1, 1, 1, 2, 2, 2, 2], [1, 1], 2, 2)
    assert all(set(np.array(batch) // 4) == {0, 1} for batch in epoch(sampler))


def test_a_sampler_that_asks_for_it_is_told_which_table_each_image_came_from(toy_recipe, toy_folder) -> None:
    table = tomli.loads(toy_recipe.read_text())
    table["run"]["name"] = "toy"
    table["train"] *= 2
    table["sampler"] |= {"name": "weighted-sets", "weights": [2, 1]}
    loaded = load_recipe(table)
    data = read_data(loaded)
    assert [sample.source for sample in data.train.samples] == [0] * 36 + [1] * 36
    run = assemble(loaded, data, toy_folder, lambda model, epoch: None)
    for batch in run.make_loader(data.train).sampler.batches(0):
        assert Counter(data.train.samples[index].source for index in batch) == {0: 4, 1: 2}


# classes drawn equally often, and none chosen at all


def test_every_class_is_drawn_equally_often_whatever_its_size() -> None:
    labels = np.array([0] + [1] * 10 + [2] * 489)
    batches = [batch for number in range(10) for batch in epoch(ClassBalanced(labels, 50, 0), number)]
    counts = np.bincount(labels[np.concatenate(batches)])
    # 10 epochs of 10 batches of 50 draws: a third of 5000, with a standard deviation of sqrt(5000 · 2 / 9), about 33
    assert counts.sum() == 5000 and np.abs(counts - 5000 / 3).max() < 130


def test_the_images_of_a_class_are_drawn_equally_often() -> None:
    labels = np.array([0] * 4 + [1])
    batches = [batch for number in range(2000) for batch in epoch(ClassBalanced(labels, 4, 0), number)]
    counts = np.bincount(np.concatenate(batches))[:4]
    # half of 8000 draws for 4 images: 1000 each, with a standard deviation of about 30
    assert np.abs(counts - 1000).max() < 120


def test_the_classes_of_a_batch_come_in_any_order() -> None:
    for sampler in (ClassBalanced(np.arange(40) % 2, 8, 0), Shuffle(np.arange(40) % 2, 8, 0)):
        assert {batch[0] % 2 for number in range(10) for batch in epoch(sampler, number)} == {0, 1}


@settings(deadline=None, max_examples=60)
@given(labels=st.lists(st.integers(-1, 4), min_size=2, max_size=40), size=st.integers(2, 12))
def test_a_shuffle_shows_every_image_once_but_those_that_fill_no_batch(labels: list[int], size: int) -> None:
    batches = epoch(Shuffle(np.array(labels), size, 0))
    shown = [index for batch in batches for index in batch]
    assert len(set(shown)) == len(shown) == (len(labels) if len(labels) < size else len(labels) - len(labels) % size)
    assert {len(batch) for batch in batches} == {min(size, len(labels))}


def test_a_single_image_is_too_few_to_shuffle() -> None:
    with pytest.raises(DataError, match="a batch takes at least 2 images, but found 1 to train on"):
        Shuffle(np.array([0]), 4, 0)
