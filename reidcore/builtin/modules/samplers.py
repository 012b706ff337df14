"""Samplers. N images; P identities with K images each make a batch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reidcore.errors import DataError


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
        order = np.argsort(labels, kind="stable")
        found, starts = np.unique(np.asarray(labels)[order], return_index=True)
        self.members = np.split(order, starts[1:])
        if len(found) < identities:
            raise DataError(
                f"sampler: a batch takes {identities} identities, but there are only {len(found)} to train on; "
                f"lower sampler.identities to at most {len(found)}"
            )
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
