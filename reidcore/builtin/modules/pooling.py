"""Global pooling of one map into one view. B batch, C channels, H W map."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from reidcore.types import Extra, MapShape, Views


def average(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, C): mean over positions (equation 2)."""
    return x.mean((2, 3))


def maximum(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, C): maximum over positions (equation 1)."""
    return x.amax((2, 3))


def average_plus_maximum(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, C): the sum of mean and maximum over positions."""
    return average(x) + maximum(x)


def only_position(x: Tensor) -> Tensor:
    """(B, C, 1, 1) -> (B, C): the value at the only position."""
    return x.flatten(1)


class GeneralizedMean(nn.Module):
    """(mean of x^alpha)^(1/alpha) over positions (equation 3); values below `eps` count as `eps`."""

    def __init__(self, alpha: float = 3.0, learn: bool = True, eps: float = 1e-6) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.tensor([float(alpha)]), requires_grad=learn)
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C), in float32 and relative to the maximum, so that no power overflows or vanishes."""
        x = x.to(torch.promote_types(x.dtype, torch.float32)).clamp(min=self.eps)
        top = x.detach().amax((2, 3), keepdim=True)  # it cancels out, in the gradient too
        means = (x / top).pow(self.alpha).mean((2, 3))
        return means.pow(1 / self.alpha) * top.flatten(1)


class Attention(nn.Module):
    """Weighted mean over positions, each channel with weights of its own (equation 4).

    The weights W_c are the softmax over positions of the scores that a learned 1x1 convolution gives channel c. The
    divisor |X_c * W_c| is read as the sum of the weights, which is 1, so f_c is the sum of w * x. Read as the number
    of positions it would divide every f_c by H·W once more. All scores start at 0, so that it starts as the average.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.score = nn.Conv2d(channels, channels, 1, bias=False)  # the softmax would cancel a bias
        nn.init.zeros_(self.score.weight)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C), weighted in float32."""
        scores: Tensor = self.score(x).flatten(2)
        weights = scores.softmax(2, dtype=torch.promote_types(x.dtype, torch.float32))
        return (weights * x.flatten(2)).sum(2)


class Pooling(nn.Module):
    """An aggregator that pools the map `source` into the view `global`."""

    embed = ("global",)

    def __init__(self, source: str, shape: MapShape, pool: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.needs = (source,)
        self.views = {"global": shape.channels}
        self.extras: dict[str, Extra] = {}
        self.pool = pool

    def forward(self, maps: Mapping[str, Tensor]) -> Views:
        """`{source: (B, C, H, W)}` -> `{"global": (B, C)}`."""
        return Views({"global": self.pool(maps[self.needs[0]])})
