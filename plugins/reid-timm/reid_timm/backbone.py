"""A model of timm as a backbone. B batch, C channels, H W map, T tokens."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from reid_timm.models import create, published
from reidcore.errors import ContractError
from reidcore.types import MapShape

RECTIFIED = ("ReluBackward0", "HardtanhBackward0")  # the latter is ReLU6


class TimmBackbone(nn.Module):
    """A model of timm for images of `height` by `width` pixels, without its pooling and classifier.

    A model whose maps shrink from stage to stage offers `stage1` and on: those of timm's `features_only` that are at
    1/4 of the image or smaller. The last one is what the model pools: after a final norm or convolution, if it has one
    there. A model of a single resolution offers `patches`, the tokens of the image after the last norm. A model with
    a class token offers it as `token`, a 1x1 map, and the last one. Other tokens, such as registers, are in no map.
    Maps count as signed unless they come straight out of a ReLU.

    `weights` are those of `reid_timm.models.create`. In training each residual branch of an image is dropped with a
    probability that rises to `drop_path` in the last block (Huang et al. 2016). With an `output_stride` of 8 or 16 the
    stages that would make the map smaller are dilated instead.

    Raises ReidError for an unknown name and for weights that are not there or do not fit; ContractError when the model
    does not take the size or an option, or has no such maps.
    """

    model: Any
    shapes: Mapping[str, MapShape]

    def __init__(
        self,
        name: str,
        height: int,
        width: int,
        *,
        weights: str = "none",
        drop_path: float = 0.0,
        output_stride: int | None = None,
    ) -> None:
        super().__init__()
        settings = published(name)
        self.name, self.size = name, (height, width)
        self.mean, self.std = tuple(settings.mean), tuple(settings.std)
        options: dict[str, object] = {}
        if drop_path:
            options["drop_path_rate"] = drop_path
        if output_stride:
            options["output_stride"] = output_stride
        if settings.fixed_input_size:
            options["img_size"] = self.size
        with torch.device("meta"), torch.enable_grad():  # shapes and gradients tell the maps, whatever the values
            self.model = create(name, weights, **options)
            unused = self._explore()
        if torch.get_default_device().type != "meta":
            self.model = create(name, weights, **options)
        for child in unused:
            setattr(self.model, child, nn.Identity())

    def _explore(self) -> list[str]:
        """Find the maps and their shapes; return the children of the model that no map depends on."""
        info: list[dict[str, Any]] = list(self.model.feature_info)
        reductions = [stage["reduction"] for stage in info]
        flat = len(set(reductions)) == 1
        if flat:
            self._require_multiples(reductions[0])
        taken = [index for index, reduction in enumerate(reductions) if reduction >= 4]
        self.last = "patches" if flat else f"stage{len(taken)}"
        self.early = {} if flat else {f"stage{number}": index for number, index in enumerate(taken[:-1], 1)}
        self.ends = {name: info[index]["module"] for name, index in self.early.items()}
        self.has_token = any(name.rpartition(".")[2] == "cls_token" for name, _ in self.model.named_parameters())
        self.model.eval()
        try:
            with _recorded(self.model) as self.steps:
                final, found = self.model.forward_intermediates(torch.zeros(1, 3, *self.size), output_fmt="NCHW")
            self.grid = tuple(found[-1].shape[2:])
            maps = {**{name: found[index] for name, index in self.early.items()}, **self._last(final)}
        except Exception as error:  # each model has its own way to refuse a size
            raise ContractError(
                f"backbone: {self.name} gives no maps of images of {self.size[0]}x{self.size[1]} pixels "
                f"({type(error).__name__}: {error}); try a square, multiples of 32, or another model"
            ) from None
        self.shapes = {
            name: MapShape(x.shape[1], x.shape[2], x.shape[3], x.grad_fn.name() not in RECTIFIED)
            for name, x in maps.items()
        }
        parameters = dict(self.model.named_parameters())
        total = torch.stack([x.sum() for x in maps.values()]).sum()
        gradients = torch.autograd.grad(total, list(parameters.values()), allow_unused=True)
        used = {name.partition(".")[0] for name, g in zip(parameters, gradients, strict=True) if g is not None}
        self.model.train()
        return sorted({name.partition(".")[0] for name in parameters if "." in name} - used)

    def _require_multiples(self, patch: int) -> None:
        if any(side % patch for side in self.size):
            height, width = self.size
            rows, columns = (max(1, round(side / patch)) for side in self.size)
            raise ContractError(
                f"backbone: found an input of {height}x{width} pixels; {self.name} takes patches of {patch}x{patch}; "
                f"write multiples of {patch} as input.height and input.width, such as {rows * patch} and "
                f"{columns * patch}"
            )

    def forward(self, images: Tensor, want: Sequence[str], cameras: Tensor | None = None) -> Mapping[str, Tensor]:
        """(B, 3, H, W) normalised -> `{name: (B, C, H, W)}` for the wanted maps; what comes later is not computed."""
        early = [name for name in self.early if name in want]
        if not early:
            maps = self._last(self.model.forward_features(images))
            return {name: maps[name] for name in want}
        indices = [self.early[name] for name in early]
        if len(early) == len(set(want)):
            stages = self.model.forward_intermediates(
                images, indices=indices, stop_early=True, intermediates_only=True, output_fmt="NCHW"
            )
            return dict(zip(early, stages, strict=True))
        indices.append(len(self.model.feature_info) - 1)  # some models end at the last index, asked to stop or not
        final, stages = self.model.forward_intermediates(images, indices=indices, output_fmt="NCHW")
        maps = {**dict(zip(early, stages[:-1], strict=True)), **self._last(final)}
        return {name: maps[name] for name in want}

    def _last(self, x: Tensor) -> dict[str, Tensor]:
        """Return the last map, and the token if there is one.

        `x` is what timm calls features: (B, C, H, W), (B, H, W, C), or (B, T, C) with the image's tokens last.
        """
        if x.ndim == 4:
            return {self.last: x.permute(0, 3, 1, 2) if getattr(self.model, "output_fmt", "") == "NHWC" else x}
        if getattr(self.model, "fc_norm", None) is not None:  # the last norm, of models that pool before it
            x = self.model.fc_norm(x)
        image = x[:, -self.grid[0] * self.grid[1] :]
        maps = {self.last: image.transpose(1, 2).reshape(x.shape[0], -1, *self.grid)}
        if self.has_token:
            maps["token"] = x[:, 0, :, None, None]
        return maps

    def tail(self, after: str) -> nn.Sequential:
        """Return a copy of what follows map `after`; nothing follows the last map, nor the patches of a transformer.

        Raises ContractError when that is more than a sequence of the model's modules.
        """
        if after not in self.early:
            return nn.Sequential()
        following = self.steps[self.steps.index(self.ends[after]) + 1 :] if self.ends[after] in self.steps else []
        tail = nn.Sequential(*copy.deepcopy([self.model.get_submodule(name) for name in following]))
        if not self._ends_the_same(after, tail):
            raise ContractError(
                f"backbone: what follows map '{after}' of {self.name} is no sequence of modules that can be copied; "
                "choose an aggregator that needs no copies, or a convolutional model"
            )
        return tail

    @torch.no_grad()
    def _ends_the_same(self, after: str, tail: nn.Module) -> bool:
        """Return whether `tail` computes the last map from map `after`; on the meta device only shapes are compared."""
        training = self.training
        self.eval()
        device = next(self.parameters()).device
        images = torch.linspace(-2, 2, 3 * self.size[0] * self.size[1], device=device).view(1, 3, *self.size)
        maps = self(images, (after, self.last))
        try:
            found = tail.eval()(maps[after])
        except Exception:  # modules in an order that does not fit
            return False
        finally:
            self.train(training)
            tail.train(training)
        expected = maps[self.last]
        return found.shape == expected.shape and (found.is_meta or torch.allclose(found, expected, 1e-3, 1e-4))


@contextmanager
def _recorded(model: nn.Module) -> Iterator[list[str]]:
    """Give a list that receives the name of each module that `model` calls itself, not within another one."""
    steps: list[str] = []
    inside: list[nn.Module] = []
    handles: list[Any] = []
    for name, module in model.named_modules():

        def enter(module: nn.Module, _: object, name: str = name) -> None:
            if not inside:
                steps.append(name)
            inside.append(module)

        def leave(*_: object) -> None:
            inside.pop()

        handles += [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]
    yield steps
    for handle in handles:
        handle.remove()
