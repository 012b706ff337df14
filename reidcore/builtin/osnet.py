"""OSNet, a backbone made for re-identification."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar

from attrs import frozen

from reidcore.component import Component, option
from reidcore.hookspecs import hookimpl

if TYPE_CHECKING:
    from reidcore.builtin.modules.osnet import OSNet


@frozen(kw_only=True)
class _OSNet:
    name: ClassVar[str]
    scale: ClassVar[float]

    ibn: bool = option(False, help="instance norms in the stem and the first stage")
    weights: str = option("imagenet", help="'imagenet' (torchreid's), 'none' or a file of weights")

    def __attrs_post_init__(self) -> None:
        if self.ibn and self.weights == "imagenet" and self.scale != 1:
            raise ValueError(
                'found ibn = true, which has ImageNet weights in osnet-x1.0 only; write weights = "none" or a file'
            )

    def build(self, height: int, width: int) -> OSNet:
        from reidcore.builtin.modules.osnet import OSNet, load_osnet_weights

        osnet = OSNet(self.scale, height, width, self.ibn)
        form = self.name.replace("-", "_ibn_" if self.ibn else "_").replace(".", "_")
        load_osnet_weights(osnet, self.name, self.weights, f"{form}_imagenet.pth")
        return osnet


@frozen(kw_only=True)
class OSNet100(_OSNet):
    """Omni-scale network (Zhou et al. 2019): 512 channels in the last of the maps stage1 to stage4."""

    name, scale = "osnet-x1.0", 1.0


@frozen(kw_only=True)
class OSNet75(_OSNet):
    """Omni-scale network (Zhou et al. 2019): 384 channels in the last of the maps stage1 to stage4."""

    name, scale = "osnet-x0.75", 0.75


@frozen(kw_only=True)
class OSNet50(_OSNet):
    """Omni-scale network (Zhou et al. 2019): 256 channels in the last of the maps stage1 to stage4."""

    name, scale = "osnet-x0.5", 0.5


@frozen(kw_only=True)
class OSNet25(_OSNet):
    """Omni-scale network (Zhou et al. 2019): 128 channels in the last of the maps stage1 to stage4."""

    name, scale = "osnet-x0.25", 0.25


@frozen(kw_only=True)
class OSNetAIN100:
    """OSNet with instance norms where a search put them (Zhou et al. 2021): stage1 to stage4, of 512 channels."""

    name: ClassVar[str] = "osnet-ain-x1.0"

    weights: str = option("imagenet", help="'imagenet' (torchreid's), 'none' or a file of weights")

    def build(self, height: int, width: int) -> OSNet:
        from reidcore.builtin.modules.osnet import OSNet, load_osnet_weights

        osnet = OSNet(1.0, height, width, ain=True)
        load_osnet_weights(osnet, self.name, self.weights, "osnet_ain_x1_0_imagenet.pth")
        return osnet


@hookimpl
def reidcore_backbones() -> Iterator[Component]:
    """Offer OSNet in the published widths, and its searched form."""
    for config in (OSNet100, OSNet75, OSNet50, OSNet25, OSNetAIN100):
        yield Component(name=config.name, config=config)
