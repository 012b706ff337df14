"""Smooth max pooling for reidcore."""

from attrs import frozen

from reidcore import Component, hookimpl


@frozen(kw_only=True)
class SmoothMax:
    """Smooth max pooling of the last map: log(sum(exp(x))) over its positions."""

    def build(self, backbone):
        from torch import nn  # here, since listing what is installed must not wait for torch

        from reidcore.types import Views

        class Pooling(nn.Module):
            needs = tuple(backbone.shapes)[-1:]  # of {name: shape}, earliest first
            views, embed, extras = {"global": backbone.shapes[needs[0]].channels}, ("global",), {}

            def forward(self, maps):  # {name: (B, C, H, W)} -> one view of (B, C)
                return Views({"global": maps[self.needs[0]].logsumexp((2, 3))})

        return Pooling()


@hookimpl
def reidcore_aggregators():
    yield Component(name="smooth-max", config=SmoothMax)
