"""What residual networks are extended with. B batch, C channels, H W map, N = HW positions."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

PREACT = ".preact"
"""Ends the name of a stage's map before the ReLU of its last block."""


class InstanceNorm(nn.InstanceNorm2d):
    """Instance norm: each channel of each image is given mean 0 and variance 1, then a learned scale and shift."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, affine=True)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W), in the layout that the convolutions around it compute in."""
        return super().forward(x).contiguous(memory_format=torch.channels_last)


class InstanceBatchNorm(nn.Module):
    """IBN-a: instance norm of the first half of the channels, batch norm of the rest (Pan et al. 2018)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.IN = InstanceNorm(half)
        self.BN = nn.BatchNorm2d(channels - half)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        half = self.IN.num_features
        return torch.cat((self.IN(x[:, :half]), self.BN(x[:, half:])), dim=1)


class SqueezeExcitation(nn.Module):
    """Scales each channel by a factor in 0..1, computed from the means of all channels (Hu et al. 2018)."""

    def __init__(self, channels: int, reduction: int = 16) -> None:
        super().__init__()
        inner = max(1, channels // reduction)
        self.fc = nn.Sequential(
            nn.Linear(channels, inner, bias=False),
            nn.ReLU(inplace=True),
            nn.Linear(inner, channels, bias=False),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        scale: Tensor = self.fc(x.mean((2, 3)))
        return x * scale[:, :, None, None]


class NonLocal(nn.Module):
    """Non-local block in its dot-product form (Wang et al. 2018, equation 4 and section 3.3).

    Position i receives W(1/N sum over j of (theta(x_i) . phi(x_j)) g(x_j)), on top of what it holds. `inner` is the
    number of channels of theta, phi and g. A batch norm ends W; its scale starts at 0, and so the block as the
    identity.
    """

    def __init__(self, channels: int, inner: int) -> None:
        super().__init__()
        self.g = nn.Conv2d(channels, inner, 1)
        self.theta = nn.Conv2d(channels, inner, 1)
        self.phi = nn.Conv2d(channels, inner, 1)
        norm = nn.BatchNorm2d(channels)
        nn.init.zeros_(norm.weight)
        self.W = nn.Sequential(nn.Conv2d(inner, channels, 1), norm)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        g, theta, phi = (project(x).flatten(2) for project in (self.g, self.theta, self.phi))  # (B, inner, N)
        # g (phi^T theta) = (g phi^T) theta, which needs no N x N matrix
        y = (g @ phi.transpose(1, 2) / g.shape[2]) @ theta
        change: Tensor = self.W(y.unflatten(2, x.shape[2:]))
        return x + change


class ResidualBlock(nn.Module):
    """A block that ends in a ReLU of what a branch adds to a shortcut."""

    relu: nn.Module

    def sums(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H', W') before the ReLU."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H', W')."""
        out: Tensor = self.relu(self.sums(x))
        return out


class ResidualStages(nn.Module):
    """A network of stages of residual blocks, `layer1` on, whose last blocks non-local blocks may follow, `NL_1` on.

    A map is called after its stage, `stage3`, or after its block, counted from 0: `stage3.0`; that of a stage's last
    block is the stage's, and before that block's ReLU it is `stage3.preact`.
    """

    stages: int

    def maps(self, x: Tensor, want: Sequence[str]) -> Mapping[str, Tensor]:
        """(B, C, H, W) of the stem -> `{name: (B, C', H', W')}` for the wanted maps; what is after them is left out."""
        maps: dict[str, Tensor] = {}
        for name, modules in self._steps():
            if len(maps) == len(set(want)):
                break
            if (before := f"{name}{PREACT}") in want:
                maps[before] = modules[0].sums(x)
                x = maps[before].relu()  # not in place
                modules = modules[1:]
            for module in modules:
                x = module(x)
            if name in want:
                maps[name] = x
        return maps

    def tail(self, after: str) -> nn.Sequential:
        """Return a copy of what follows map `after`: blocks, each with its non-local block if it has one."""
        steps = list(self._steps())
        start = [name for name, _ in steps].index(after.removesuffix(PREACT))
        rest = [nn.ReLU(), *steps[start][1][1:]] if after.endswith(PREACT) else []
        rest += [module for _, modules in steps[start + 1 :] for module in modules]
        return nn.Sequential(*copy.deepcopy(rest))

    def _steps(self) -> Iterator[tuple[str, list[Any]]]:
        """Yield each block, with its non-local block if it has one, and the name of the map that they give."""
        for number in range(1, self.stages + 1):
            blocks, attention = getattr(self, f"layer{number}"), getattr(self, f"NL_{number}")
            plain = len(blocks) - len(attention)
            for index, block in enumerate(blocks):
                name = f"stage{number}" if index == len(blocks) - 1 else f"stage{number}.{index}"
                yield name, [block] if index < plain else [block, attention[index - plain]]
