"""Embeddings on a plane. N images, D embedding."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from reidcore.types import UNKNOWN

MOST = 1000
"""Images on a map: more take long, and are too many to look at."""


def chosen_images(identities: NDArray[np.int64], most: int = MOST, seed: int = 0) -> NDArray[np.int64]:
    """Return numbers of up to `most` images, ascending: all those of identities that are drawn at random, of the
    last one as many as there is room for. Images of unknown identity are left out.
    """
    random = np.random.default_rng(seed)
    chosen: list[NDArray[np.int64]] = []
    room = most
    for identity in random.permutation(np.unique(identities[identities != UNKNOWN])):
        images = np.flatnonzero(identities == identity)[:room]
        chosen.append(images)
        room -= len(images)
        if not room:
            break
    return np.sort(np.concatenate(chosen)) if chosen else np.zeros(0, np.int64)


def places(embeddings: Any, distance: str, seed: int = 0) -> NDArray[np.float64]:
    """Return (N, 2) places in -1..1 at which neighbours of (N, D) embeddings are neighbours, by t-SNE.

    (van der Maaten and Hinton, Visualizing Data using t-SNE, JMLR 2008.) "cosine" looks at directions only.
    """
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    found = np.asarray(embeddings, dtype=np.float32)
    if distance == "cosine":
        found = found / np.linalg.norm(found, axis=1, keepdims=True)
    if not np.ptp(found, axis=0).any():  # all are one
        return np.zeros((len(found), 2))
    if len(found) < 5:  # t-SNE wants more
        found = found - found.mean(0)
        flat = found @ np.linalg.svd(found, full_matrices=False)[2][:2].T
        flat = np.pad(flat, ((0, 0), (0, 2 - flat.shape[1])))
    else:
        if min(found.shape) > 50:
            found = PCA(50, random_state=seed).fit_transform(found)
        perplexity = min(30.0, (len(found) - 1) / 3)
        start: Any = "pca" if found.shape[1] > 1 else "random"
        flat = TSNE(perplexity=perplexity, init=start, random_state=seed).fit_transform(found)
    flat = flat - (flat.max(0) + flat.min(0)) / 2
    return np.asarray(flat / max(float(np.abs(flat).max()), 1e-12), dtype=np.float64)
