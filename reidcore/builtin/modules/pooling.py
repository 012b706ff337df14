"""Global pooling of one map into one view. B batch, C channels, H W map."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from reidcore.errors import ContractError
from reidcore.types import Extra, MapShape, Views


def average(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, C): mean over positions (equation 2)."""
    return x.mean((2, 3))


def maximum(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, C): maximum over positions (equation 1)."""
    return x.amax((2, 3))


class GeneralizedMean(nn.Module):
    """(mean of x^alpha)^(1/alpha) over positions (equation 3); values below `eps` count as `eps`."""

    def __init__(self, alpha: float = 3.0, learn: bool = True, eps: float = 1e-6) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.tensor([float(alpha)]), requires_grad=learn)
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C), in float32 and relative to the maximum, so that no power overflows or vanishes."""
        with torch.autocast(x.device.type, enabled=False):
            x = x.float().clamp(min=self.eps)
            top = x.detach().amax((2, 3), keepdim=True)  # it cancels out, in the gradient too
            means = (x / top).pow(self.alpha).mean((2, 3))
            return means.pow(1 / self.alpha) * top.flatten(1)


class Pooling(nn.Module):
    """An aggregator that pools the map `source` into the view `global`.

    Raises ContractError for a signed map when the pooling is for positive values only.
    """

    embed = ("global",)

    def __init__(self, source: str, shape: MapShape, pool: Callable[[Tensor], Tensor], positive: bool = False) -> None:
        super().__init__()
        if positive and shape.signed:
            raise ContractError(
                f"aggregator: map '{source}' may be negative, which generalized-mean pooling is not for"
            )
        self.needs = (source,)
        self.views = {"global": shape.channels}
        self.extras: dict[str, Extra] = {}
        self.pool = pool

    def forward(self, maps: Mapping[str, Tensor]) -> Views:
        """`{source: (B, C, H, W)}` -> `{"global": (B, C)}`."""
        return Views({"global": self.pool(maps[self.needs[0]])})
