"""What a student is held to, as functions of what it and its teacher put out; the teacher's has no gradient.

B batch, K classes, D embedding (the teacher's may have another), C channels, H W map.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

_LEAST = 1e-7  # a similarity: a pair that points in opposite directions still has a logarithm


def l1(student: Tensor, teacher: Tensor) -> Tensor:
    """|l_s - l_t|_1 of (B, K) logits, the mean over the batch (FastReID, equation 8)."""
    return (student - teacher).abs().sum(1).mean()


def kl(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T^2 KL(p_t || p_s) of (B, K) logits, p = softmax(l / T), the mean over the batch (Hinton et al. 2015)."""
    of_student, of_teacher = (F.log_softmax(logits / temperature, 1) for logits in (student, teacher))
    divergence: Tensor = F.kl_div(of_student, of_teacher, reduction="batchmean", log_target=True)
    return divergence * temperature**2


def symmetric(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """The mean of `kl` both ways, as in the reference system."""
    return (kl(student, teacher, temperature) + kl(teacher, student, temperature)) / 2


def pkt(student: Tensor, teacher: Tensor) -> Tensor:
    """Probabilistic knowledge transfer between (B, D) embeddings (FastReID, equation 9; Passalis and Tefas 2018).

    Sum over i and j != i of p_j|i log(p_j|i / q_j|i). p are the teacher's similarities to image i, divided by their
    sum, and q the student's; similarity is (1 + cos) / 2.
    """
    p, q = (_similarities(embeddings) for embeddings in (teacher, student))
    return (p * (p.log() - q.log())).sum()


def _similarities(embeddings: Tensor) -> Tensor:
    """(B, D) -> (B, B - 1), of each image to the others, with sum 1."""
    x = F.normalize(embeddings, dim=1)
    similarities = _others((1 + x @ x.T) / 2).clamp(min=_LEAST)
    return similarities / similarities.sum(1, keepdim=True)


def _others(pairs: Tensor) -> Tensor:
    """(B, B) -> (B, B - 1) without the diagonal."""
    count = len(pairs)
    return pairs.flatten()[:-1].view(count - 1, count + 1)[:, 1:].reshape(count, count - 1)


def distances(student: Tensor, teacher: Tensor) -> Tensor:
    """Huber loss between the distances of pairs, each divided by the mean distance (Park et al. 2019, RKD-D).

    (B, D) embeddings; the mean over pairs i != j, 0 if there are none.
    """
    if len(student) < 2:
        return student.sum() * 0
    of_student, of_teacher = (torch.pdist(embeddings) for embeddings in (student, teacher))
    return F.smooth_l1_loss(*(found / found.mean().clamp(min=_LEAST) for found in (of_student, of_teacher)))


def angles(student: Tensor, teacher: Tensor) -> Tensor:
    """Huber loss between the cosines of the angles at j of triplets i, j, k (Park et al. 2019, RKD-A).

    (B, D) embeddings; the mean over triplets of three different images, 0 if there are none.
    """
    count = len(student)
    if count < 3:
        return student.sum() * 0
    different = ~torch.eye(count, dtype=torch.bool, device=student.device)
    triplets = different[:, :, None] & different[:, None, :] & different[None]
    return F.smooth_l1_loss(_cosines(student)[triplets], _cosines(teacher)[triplets])


def _cosines(embeddings: Tensor) -> Tensor:
    """(B, D) -> (B, B, B): at [j, i, k] the cosine of the angle at j between the directions to i and to k.

    All come from the (B, B) products, which takes less memory than the (B, B, D) directions.
    """
    x = embeddings - embeddings.mean(0)
    products = x @ x.T
    to = products - products.diagonal()[:, None]  # [j, i]: x_j (x_i - x_j)
    dots = products[None] - products[:, :, None] - to[:, None, :]
    lengths = dots.diagonal(dim1=1, dim2=2).clamp(min=_LEAST).sqrt()  # [j, i]: |x_i - x_j|
    return dots / (lengths[:, :, None] * lengths[:, None, :])


def margin_relu(student: Tensor, teacher: Tensor) -> Tensor:
    """Partial squared distance between maps before their ReLU (Heo et al. 2019).

    (B, C, H, W) both; the sum over all of them, divided by B. The teacher's values below its channel's margin, the
    mean of the negative ones of the batch, count as the margin. Where the target is not positive the student only has
    to be as low.
    """
    negative = teacher.clamp(max=0)
    margin = negative.sum((0, 2, 3)) / (negative < 0).sum((0, 2, 3)).clamp(min=1)
    target = torch.maximum(teacher, margin[:, None, None])
    counts = (student > target) | (target > 0)
    return ((student - target).square() * counts).sum() / len(student)
