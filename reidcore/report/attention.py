"""Where a model looks when it finds two images alike. B batch, C channels, H W map."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from reidcore.model import Model
from reidcore.report.pictures import data_url

_CELL = 16
"""Pixels that are averaged where it is gradients of pixels that are looked at."""


def similarity_shares(model: Model, first: Tensor, second: Tensor, cameras: Tensor | None = None) -> Tensor:
    """Return for pairs of (B, 3, H, W) uint8 images what in each makes their embeddings similar: (2 B, h, w), the
    first ones' before the second ones'. cameras: (2 B,), if the model is to be told them.

    It is the product of the map that the aggregator reads, of several the last, and of the cosine's gradient for it,
    summed over channels (Draelos and Carin, Use HiResCAM instead of Grad-CAM, 2020); lengths count as constants. Of a
    model that averages the map and then is linear without a shift, these are each position's share of the cosine, and
    their sum is the cosine. Of a model whose only map has a single position, as transformers with a class token have,
    it is the size of the gradient for the pixels (Simonyan et al. 2014), by cells of 16x16.
    """
    shapes = model.backbone.shapes
    names = [name for name in model.aggregator.needs if shapes[name].height * shapes[name].width > 1]
    count, training = len(first), model.training
    model.eval()
    try:
        with torch.enable_grad():
            images = torch.cat([first, second]).float().requires_grad_(True)
            output = model(images, names[-1:], cameras)
            embeddings = output.embedding.float()
            directions = F.normalize(embeddings).detach()
            others = torch.cat([directions[count:], directions[:count]])  # each side is held to what the other one is
            alike = (embeddings * others).sum(1) / embeddings.norm(dim=1).detach()
            source = output.maps[names[-1]] if names else images
            (gradient,) = torch.autograd.grad(alike.sum(), source)
    finally:
        model.train(training)
    if names:
        return (gradient * source).sum(1).detach()
    return F.avg_pool2d(gradient.abs().sum(1, keepdim=True), _CELL, ceil_mode=True)[:, 0]


def similarity_maps(
    model: Model, first: Tensor, second: Tensor, cameras: Tensor | None = None
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return where `similarity_shares` are positive, for each side (B, h, w), of the largest one."""
    shares = similarity_shares(model, first, second, cameras).clamp_min(0)
    maps = (shares / shares.amax((1, 2), keepdim=True).clamp_min(1e-12)).cpu().numpy()
    return maps[: len(first)], maps[len(first) :]


def overlay(image: NDArray[np.uint8], heat: NDArray[np.float32]) -> str:
    """Return an (H, W, 3) image in grey, with (h, w) heat in 0..1 in colour over it, as a text that a page shows."""
    from matplotlib import colormaps

    height, width = image.shape[:2]
    warm = Image.fromarray(np.uint8(heat * 255)).resize((width, height), Image.Resampling.BICUBIC)
    strength = np.asarray(warm, dtype=np.float32)[..., None] / 255
    grey = np.asarray(Image.fromarray(image).convert("L"), dtype=np.float32)[..., None]
    colours = colormaps["inferno"](strength[..., 0])[..., :3] * 255
    return data_url(Image.fromarray(np.uint8(grey * (1 - 0.7 * strength) + 0.7 * strength * colours)))
