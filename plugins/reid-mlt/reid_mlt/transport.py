"""Optimal transport with entropy, by a log-stabilised Sinkhorn iteration.

N images, K classes. Cuturi 2013; stabilised by absorbing the scalings into the kernel (Schmitzer 2019, algorithm 2).
"""

from __future__ import annotations

import math

import torch
from attrs import frozen
from torch import Tensor

from reidcore.errors import ReidError


@frozen(eq=False)
class Plan:
    """Soft labels that meet a marginal.

    shares: (N, K), the share of each class in each image, rows of sum 1; error: the largest relative difference of a
    class's sum over images from what the marginal says; iterations: how many it took.
    """

    shares: Tensor
    error: float
    iterations: int


@torch.no_grad()
def sinkhorn(
    scores: Tensor,
    marginal: Tensor,
    *,
    sharpness: float = 1.0,
    tolerance: float = 1e-2,
    iterations: int = 1000,
) -> Plan:
    """Return the plan Q that solves

        min <Q, -scores> - H(Q) / sharpness,   Q 1 = 1/N,   Q^T 1 = marginal,

    with its rows multiplied by N. H is the entropy; as `sharpness` grows, the plan nears the optimal assignment.

    scores: (N, K), what an image is worth in a class, for instance a cosine; with those of log-probabilities this is
    the label assignment of Asano et al. (2020). marginal: (K,) shares of the classes, with sum 1. It computes in the
    type of `scores`, and takes twice their memory beside them. It ends when no class is off by more than `tolerance`
    relatively, or after `iterations`, with rows that are exact.

    Raises ReidError for scores that are not finite, and for a marginal with shares that are not above 0 or another sum.
    """
    count, classes = scores.shape
    marginal = marginal.to(scores)
    if marginal.shape != (classes,) or not bool((marginal > 0).all()) or abs(float(marginal.sum()) - 1) > 1e-3:
        raise ReidError(f"the marginal has to be {classes} numbers above 0 with sum 1")
    if not bool(scores.isfinite().all()):
        raise ReidError("scores of the transport are not finite; look at the features")
    # The plan is u * exp(sharpness * scores + rows + columns) * v / N: rows and columns are logarithms, which take in u
    # and v when these have become so large or small that products could overflow or vanish.
    columns = scores.new_zeros(classes)
    u, v, sums = scores.new_ones(count), scores.new_ones(classes), marginal
    kernel = torch.empty_like(scores)
    limit = math.log(torch.finfo(scores.dtype).max) / 4
    error, done = math.inf, 0
    while error > tolerance and done < iterations:
        done += 1
        v = v if done == 1 else marginal / sums
        if done == 1 or not max(float(x.log().abs().max()) for x in (u, v)) < limit:
            columns += v.log().nan_to_num(0, 0, 0)
            torch.add(columns, scores, alpha=sharpness, out=kernel)
            rows = -kernel.logsumexp(1, keepdim=True)
            kernel += rows
            change = marginal.log() - kernel.logsumexp(0) + math.log(count)
            columns += change
            kernel += change
            kernel.exp_()
            u, v = torch.ones_like(u), torch.ones_like(v)
        u = 1 / (kernel @ v)
        sums = kernel.T @ u / count
        error = float((v * sums / marginal - 1).abs().max())
        error = error if error == error else math.inf
    kernel *= u[:, None]
    kernel *= v
    return Plan(kernel, error, done)
