"""The multiple granularity network as an aggregator. B batch, C channels, H W map, D view."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from torch import Tensor, nn

from reidcore.errors import ContractError
from reidcore.kinds import Backbone
from reidcore.types import Extra, Views


class MultipleGranularity(nn.Module):
    """Copies of the backbone's tail, one a branch, that look at the whole image and at its stripes (Wang et al. 2018).

    Branch `b1` is the tail after map `source` as it is. For each number in `stripes` there is a further branch, `b2`
    and `b3`, whose convolutions have a stride of 1. Beside its whole map it pools that many horizontal stripes: `b21`
    and `b22`, `b31` to `b33`. Each view has what `pool` makes and a reduction to `dim` of its own: a 1x1 convolution,
    with `activate` followed by batch norm and ReLU as published. Each view has a head of its own, which classifies
    what is reduced; Wang et al. classify the whole maps before they are reduced. The embedding joins the whole maps'
    views, then the stripes'.

    Raises KeyError when the backbone does not offer `source`, and ContractError when no stage follows it or it has
    fewer rows than stripes.
    """

    def __init__(
        self,
        backbone: Backbone,
        source: str,
        stripes: Sequence[int],
        dim: int,
        pool: Callable[[], Callable[[Tensor], Tensor]],
        activate: bool = True,
    ) -> None:
        super().__init__()
        if source not in backbone.shapes:
            raise KeyError(source)
        if (rows := backbone.shapes[source].height) < max(stripes, default=0):
            raise ContractError(
                f"aggregator: map '{source}' has {rows} rows, too few for {max(stripes)} stripes; take larger images, "
                "fewer stripes or an earlier map as source"
            )
        self.tails = nn.ModuleDict({"b1": backbone.tail(source)})
        self.parts: dict[str, list[str]] = {"b1": []}
        for number, count in enumerate(stripes, 2):
            self.tails[f"b{number}"] = _without_strides(backbone.tail(source))
            self.parts[f"b{number}"] = [f"b{number}{i}" for i in range(1, count + 1)]
        if next(self.tails.parameters(), None) is None:
            raise ContractError(
                f"aggregator: no stage of the backbone follows map '{source}'; choose an earlier map as source"
            )
        channels = list(backbone.shapes.values())[-1].channels
        views = [view for name, parts in self.parts.items() for view in (name, *parts)]
        self.pools = {view: pool() for view in views}
        self.exponents = nn.ModuleDict({view: p for view, p in self.pools.items() if isinstance(p, nn.Module)})
        self.reductions = nn.ModuleDict({view: _reduction(channels, dim, activate) for view in views})
        self.needs = (source,)
        self.views = dict.fromkeys(views, dim)
        self.embed = (*self.parts, *(part for parts in self.parts.values() for part in parts))
        self.extras: dict[str, Extra] = {}

    def forward(self, maps: Mapping[str, Tensor]) -> Views:
        """`{source: (B, C, H, W)}` -> `{view: (B, D)}`.

        Stripes are cut as by adaptive pooling: they share a row where the height is not a multiple of their number.
        """
        vectors = {}
        for name, parts in self.parts.items():
            x = self.tails[name](maps[self.needs[0]])
            vectors[name] = self.reductions[name](self.pools[name](x))
            height, count = x.shape[2], len(parts)
            for i, part in enumerate(parts):  # adaptive pooling itself has no deterministic gradient on CUDA
                stripe = x[:, :, i * height // count : -(-(i + 1) * height // count)]
                vectors[part] = self.reductions[part](self.pools[part](stripe))
        return Views(vectors)


def _without_strides(tail: nn.Module) -> nn.Module:
    for module in tail.modules():
        if isinstance(module, nn.Conv2d):
            module.stride = (1, 1)
        elif isinstance(module, (nn.AvgPool2d, nn.MaxPool2d)):  # of shortcuts, or after a convolution
            if module.kernel_size == module.stride:
                module.kernel_size = 1
            module.stride = 1
    return tail


def _reduction(channels: int, dim: int, activate: bool) -> nn.Sequential:
    linear = nn.Linear(channels, dim, bias=False)  # on one position, a 1x1 convolution
    nn.init.kaiming_normal_(linear.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(linear, nn.BatchNorm1d(dim), nn.ReLU()) if activate else nn.Sequential(linear)
