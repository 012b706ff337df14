"""Samplers. N images; P identities with K images each make a batch, or a number of images does.

All draw from a generator of their own, seeded by (seed, epoch). All but `Shuffle` leave unlabelled images out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reidcore.errors import DataError
from reidcore.types import UNKNOWN


class IdentityBalanced:
    """Batches of P identities with K images each (Hermans et al. 2017).

    Each identity's images are dealt into groups of at most K from as many cameras as possible; smaller ones are
    topped up, from cameras that they lack before others, with repeats where an identity has fewer than K images. An
    epoch takes as many batches as the groups fill, so every image is seen, but for those of an identity that has
    more groups than there are batches.

    labels, cameras: (N,) ints. Raises DataError when there are fewer than P identities.
    """

    def __init__(self, labels: NDArray[Any], cameras: NDArray[Any], identities: int, instances: int, seed: int) -> None:
        self.cameras = np.asarray(cameras)
        self.p, self.k, self.seed = identities, instances, seed
        self.members = _by_identity(labels)
        _require_identities(identities, len(self.members))
        self.length = -(-sum(-(-len(members) // instances) for members in self.members) // identities)

    def __len__(self) -> int:
        return self.length

    def batches(self, epoch: int) -> Iterator[NDArray[Any]]:
        """Yield (P·K,) positions, those of one identity together; a function of seed and epoch only."""
        random = np.random.default_rng([self.seed, epoch])
        groups = [self._groups(members, random) for members in self.members]
        left = np.array([len(queue) for queue in groups])
        for _ in range(self.length):
            # identities with most groups left come first, random among equals, so that none remains alone at the end
            order = np.lexsort((random.random(len(left)), -left))
            chosen = random.permutation(order[: self.p])
            rows = []
            for identity in chosen:
                if not groups[identity]:
                    groups[identity] = self._groups(self.members[identity], random)
                rows.append(groups[identity].pop())
                left[identity] = max(0, left[identity] - 1)
            yield np.concatenate(rows)

    def _groups(self, members: NDArray[Any], random: np.random.Generator) -> list[NDArray[Any]]:
        """Split one identity's images into groups of K, each from as many cameras as possible."""
        # like a hand of cards: dealt round by round, the images of one camera come to different groups
        names, camera = np.unique(self.cameras[members], return_inverse=True)
        dealt = members[np.lexsort((random.random(len(members)), random.permutation(len(names))[camera]))]
        count = -(-len(members) // self.k)
        groups = [self._top_up(dealt[start::count], members, random) for start in range(count)]
        return [groups[index] for index in random.permutation(count)]

    def _top_up(self, group: NDArray[Any], members: NDArray[Any], random: np.random.Generator) -> NDArray[Any]:
        """Add images to a group until it has K: new ones before repeats, from new cameras before the same."""
        while len(group) < self.k:
            others = np.setdiff1d(members, group)
            pool = others if len(others) else members
            elsewhere = pool[~np.isin(self.cameras[pool], self.cameras[group])]
            group = np.append(group, random.choice(elsewhere if len(elsewhere) else pool))
        return group


class Naive:
    """Batches of P identities with K images each, whatever their cameras.

    In a round each identity's images are shuffled into groups of K, and each batch takes a group of P identities drawn
    at random among those that have one left. What does not fill a group is not shown in this round; an identity with
    fewer than K images has one group, with repeats. A round ends when fewer than P identities have a group left. An
    epoch has as many batches as the N images fill, at least one, and goes on with another round where one is too short.

    labels: (N,) ints. Raises DataError when there are fewer than P identities.
    """

    def __init__(self, labels: NDArray[Any], identities: int, instances: int, seed: int) -> None:
        self.p, self.k, self.seed = identities, instances, seed
        self.members = _by_identity(labels)
        _require_identities(identities, len(self.members))
        self.length = _length(sum(map(len, self.members)), identities * instances)

    def __len__(self) -> int:
        return self.length

    def batches(self, epoch: int) -> Iterator[NDArray[Any]]:
        """Yield (P·K,) positions, those of one identity together."""
        deck = _Deck(self.members, self.k, np.random.default_rng([self.seed, epoch]))
        for _ in range(self.length):
            yield deck.draw(self.p).flatten()


class WeightedSets:
    """Batches of P identities with K images each, in which the data sets have shares of the identities.

    Each data set is sampled as by `Naive`, in rounds of its own. Where the weights do not divide P, batches differ, so
    that the epoch has the right shares. An epoch has as many batches as the N images fill, at least one.

    labels, sources: (N,) ints; weights: one number a source. Raises DataError when there are more or fewer weights
    than sources, or when a source has too few identities.
    """

    def __init__(
        self,
        labels: NDArray[Any],
        sources: NDArray[Any],
        weights: Sequence[float],
        identities: int,
        instances: int,
        seed: int,
    ) -> None:
        self.k, self.seed = instances, seed
        tables = np.unique(sources).tolist()
        if len(weights) != len(tables):
            raise DataError(
                f"sampler.weights: found {len(weights)} numbers, but the images come from {len(tables)} [[train]] "
                "tables; expected one for each"
            )
        self.sets = [_by_identity(np.where(sources == table, labels, UNKNOWN)) for table in tables]
        images = sum(len(members) for members_of_set in self.sets for members in members_of_set)
        self.quotas = _quotas(np.array(weights), identities, _length(images, identities * instances))
        for number, (table, members) in enumerate(zip(tables, self.sets, strict=True)):
            if len(members) < (most := self.quotas[:, number].max()):
                raise DataError(
                    f"sampler: a batch takes up to {most} identities of train.{table}, which has only {len(members)} "
                    f"to train on; lower sampler.weights.{number} or sampler.identities"
                )

    def __len__(self) -> int:
        return len(self.quotas)

    def batches(self, epoch: int) -> Iterator[NDArray[Any]]:
        """Yield (P·K,) positions, those of one identity together."""
        random = np.random.default_rng([self.seed, epoch])
        decks = [_Deck(members, self.k, random) for members in self.sets]
        for quota in self.quotas:
            groups = [deck.draw(count) for deck, count in zip(decks, quota, strict=True) if count]
            yield random.permutation(np.concatenate(groups)).flatten()


class ClassBalanced:
    """Batches of images drawn with replacement, each class as often as any other, however many images it has.

    An epoch draws as many full batches as the N images fill, at least one.

    labels: (N,) ints. Raises DataError when no image is labelled.
    """

    def __init__(self, labels: NDArray[Any], batch: int, seed: int) -> None:
        self.batch, self.seed = batch, seed
        self.members = _by_identity(labels)
        _require_identities(1, len(self.members))
        self.length = _length(sum(map(len, self.members)), batch)

    def __len__(self) -> int:
        return self.length

    def batches(self, epoch: int) -> Iterator[NDArray[Any]]:
        """Yield (batch,) positions, those of one class together."""
        random = np.random.default_rng([self.seed, epoch])
        for _ in range(self.length):
            classes, counts = np.unique(random.integers(len(self.members), size=self.batch), return_counts=True)
            drawn = [random.choice(self.members[c], count) for c, count in zip(classes, counts, strict=True)]
            yield np.concatenate([drawn[place] for place in random.permutation(len(drawn))])


class Shuffle:
    """Batches of all images in random order, each at most once an epoch.

    The images that do not fill a last batch are left out of the epoch, since small batches make poor batch
    statistics; with fewer images than a batch takes, all are the only one.

    labels: (N,) ints. Raises DataError when there are fewer than 2 images, which batch norm needs.
    """

    def __init__(self, labels: NDArray[Any], batch: int, seed: int) -> None:
        if len(labels) < 2:
            raise DataError(f"sampler: a batch takes at least 2 images, but found {len(labels)} to train on")
        self.labels, self.batch, self.seed = np.asarray(labels), batch, seed
        self.length = _length(len(labels), batch)

    def __len__(self) -> int:
        return self.length

    def batches(self, epoch: int) -> Iterator[NDArray[Any]]:
        """Yield (batch,) positions, those of one class together."""
        order = np.random.default_rng([self.seed, epoch]).permutation(len(self.labels))
        for number in range(self.length):
            batch = order[number * self.batch : (number + 1) * self.batch]
            _, first, classes = np.unique(self.labels[batch], return_index=True, return_inverse=True)
            yield batch[np.argsort(first[classes], kind="stable")]  # a class stands where its first image did


class _Deck:
    """Groups of K images of one identity each, which are dealt out in rounds."""

    def __init__(self, members: Sequence[NDArray[Any]], instances: int, random: np.random.Generator) -> None:
        self.members, self.k, self.random = members, instances, random
        self.groups: list[NDArray[Any]] = []
        self.left = np.zeros(len(members), int)

    def draw(self, count: int) -> NDArray[Any]:
        """Return (count, K) positions, a row an identity; begin a new round when too few have a group left."""
        if np.count_nonzero(self.left) < count:
            self.groups = [
                np.resize(self.random.permutation(members), (max(1, len(members) // self.k), self.k))
                for members in self.members
            ]
            self.left = np.array([len(groups) for groups in self.groups])
        chosen = self.random.choice(np.flatnonzero(self.left), count, replace=False)
        self.left[chosen] -= 1
        return np.stack([self.groups[identity][self.left[identity]] for identity in chosen])


def _quotas(weights: NDArray[Any], identities: int, batches: int) -> NDArray[Any]:
    """Return (batches, sources): how many identities of each source every batch takes.

    Every place goes to the source that is furthest behind its share of all places so far.
    """
    shares = weights / weights.sum()
    quotas = np.zeros((batches, len(weights)), int)
    due = np.zeros(len(weights))
    for quota in quotas:
        for _ in range(identities):
            due += shares
            chosen = due.argmax()
            due[chosen] -= 1
            quota[chosen] += 1
    return quotas


def _by_identity(labels: NDArray[Any]) -> list[NDArray[Any]]:
    """Return the positions of each identity's images, without the unlabelled ones."""
    labels = np.asarray(labels)
    order = np.argsort(labels, kind="stable")
    found, starts = np.unique(labels[order], return_index=True)
    return [members for label, members in zip(found, np.split(order, starts[1:]), strict=False) if label != UNKNOWN]


def _require_identities(wanted: int, found: int) -> None:
    if not found:
        raise DataError("sampler: no image to train on is labelled; only the sampler 'shuffle' takes such images")
    if found < wanted:
        raise DataError(
            f"sampler: a batch takes {wanted} identities, but there are only {found} to train on; "
            f"lower sampler.identities to at most {found}"
        )


def _length(images: int, batch: int) -> int:
    return max(1, images // batch)
