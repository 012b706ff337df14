"""Vision transformer with torchvision's parameter names, as a backbone.

B batch, D channels of a token, T tokens, H W the grid of patches.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import ViT_B_16_Weights
from torchvision.models.vision_transformer import Encoder
from torchvision.ops import StochasticDepth

from reidcore.errors import ContractError
from reidcore.types import MapShape
from reidcore.weights import load_weights

PATCH = 16


class VisionTransformer(nn.Module):
    """Vision transformer (Dosovitskiy et al. 2021) of 16x16 patches, without its classifier.

    It offers, after the last norm, the map `patches` and, as the last one, `token`: the class token as a 1x1 map.
    Both are signed. Patches overlap when their `stride` is below 16 (He et al. 2021).

    `cameras` is the number of cameras that have an embedding, 0 for none; every token gets its image's, times
    `camera_weight` (side information; He et al. 2021). One further embedding is for the unknown camera: any other
    number, and all images when no cameras are given. So that it learns, a share `camera_dropout` of the training
    images counts as from there.

    In training each residual branch of an image is dropped with a probability that rises from 0 in the first layer
    to `drop_path` in the last (Huang et al. 2016). Raises ContractError for images of fewer than 16 pixels a side.
    """

    mean = (0.485, 0.456, 0.406)
    std = (0.229, 0.224, 0.225)

    def __init__(
        self,
        dim: int,
        layers: int,
        heads: int,
        height: int,
        width: int,
        stride: int = PATCH,
        drop_path: float = 0.1,
        cameras: int = 0,
        camera_weight: float = 3.0,
        camera_dropout: float = 0.1,
    ) -> None:
        super().__init__()
        if min(height, width) < PATCH:
            raise ContractError(
                f"backbone: found an input of {height}x{width} pixels; a vision transformer takes patches of "
                f"{PATCH}x{PATCH}; raise input.height and input.width"
            )
        rows, columns = ((side - PATCH) // stride + 1 for side in (height, width))
        self.shapes = {
            "patches": MapShape(dim, rows, columns, signed=True),
            "token": MapShape(dim, 1, 1, signed=True),
        }
        self.conv_proj = nn.Conv2d(3, dim, PATCH, stride)
        self.class_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.encoder = Encoder(rows * columns + 1, layers, heads, dim, 4 * dim, dropout=0.0, attention_dropout=0.0)
        for number, block in enumerate(self.encoder.layers):
            rate = drop_path * number / max(layers - 1, 1)
            block.dropout = block.mlp[-1] = StochasticDepth(rate, "row")  # each ends a residual branch
        nn.init.trunc_normal_(self.conv_proj.weight, std=(3 * PATCH**2) ** -0.5)
        nn.init.zeros_(self.conv_proj.bias)  # type: ignore[arg-type]
        self.cameras, self.camera_weight, self.camera_dropout = cameras, camera_weight, camera_dropout
        if cameras:
            self.camera_embedding = nn.Parameter(nn.init.trunc_normal_(torch.empty(cameras + 1, 1, dim), std=0.02))

    def forward(self, images: Tensor, want: Sequence[str], cameras: Tensor | None = None) -> Mapping[str, Tensor]:
        """(B, 3, ., .) normalised, (B,) cameras -> `patches` (B, D, H, W) and `token` (B, D, 1, 1), if wanted."""
        grid = self.conv_proj(images)
        tokens = torch.cat([self.class_token.expand(grid.shape[0], -1, -1), grid.flatten(2).transpose(1, 2)], 1)
        if self.cameras:
            tokens = tokens + self.camera_weight * self.camera_embedding[self._slots(cameras, grid.shape[0])]
        tokens = self.encoder(tokens).transpose(1, 2)
        maps = {"patches": tokens[:, :, 1:].reshape(grid.shape), "token": tokens[:, :, :1, None]}
        return {name: maps[name] for name in want}

    def _slots(self, cameras: Tensor | None, images: int) -> Tensor:
        """Return the (B,) row of each image in the table of embeddings, whose last is the unknown camera's."""
        if cameras is None:
            return torch.full((images,), self.cameras, device=self.camera_embedding.device)
        known = (cameras >= 0) & (cameras < self.cameras)
        if self.training:
            known &= torch.rand(images, device=cameras.device) >= self.camera_dropout
        return torch.where(known, cameras, self.cameras)

    def tail(self, after: str) -> nn.Sequential:
        """Return an empty sequence: no stage follows either map."""
        return nn.Sequential()


def load_vit_weights(vit: VisionTransformer, name: str, weights: str) -> None:
    """Load "imagenet" (torchvision's file for ViT-B/16), a file with torchvision's names, or nothing ("none").

    A square grid of positions of another size is resized. Raises ReidError when the file is not there and cannot be
    fetched, or does not fit.
    """
    patches = vit.shapes["patches"]
    adapted = partial(adapt, rows=patches.height, columns=patches.width)
    url = ViT_B_16_Weights.IMAGENET1K_V1.url
    load_weights(vit, name, weights, url, new=("camera_embedding",), adapt=adapted)


def adapt(state: Mapping[str, Tensor], rows: int, columns: int) -> dict[str, Tensor]:
    """Return a state dict of torchvision's without its classifier, and with positions of a grid of this size."""
    adapted = {}
    for key, value in state.items():
        if key == "encoder.pos_embedding":
            value = resize_positions(value, rows, columns)
        if not key.startswith("heads."):
            # the published files are older than torchvision's present names
            adapted[key.replace("mlp.linear_1.", "mlp.0.").replace("mlp.linear_2.", "mlp.3.")] = value
    return adapted


def resize_positions(positions: Tensor, rows: int, columns: int) -> Tensor:
    """(1, 1 + T, D) of the class token and a square grid -> (1, 1 + `rows` * `columns`, D), bilinear (He et al. 2021).

    Where T is no square number, `positions` are returned as they are.
    """
    token, grid = positions[:, :1], positions[:, 1:].transpose(1, 2)
    side = math.isqrt(grid.shape[2])
    if side**2 != grid.shape[2]:
        return positions
    resized = F.interpolate(grid.reshape(1, -1, side, side), (rows, columns), mode="bilinear")
    return torch.cat([token, resized.flatten(2).transpose(1, 2)], 1)
