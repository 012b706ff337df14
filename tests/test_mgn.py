"""The multiple granularity network: its branches, stripes and views."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.resnet import BasicBlock

from reidcore.builtin.aggregators import MGN
from reidcore.builtin.modules.mgn import MultipleGranularity, _without_strides
from reidcore.builtin.modules.pooling import GeneralizedMean, average, maximum
from reidcore.errors import ContractError
from reidcore.types import MapShape

PARTS = {"b1": (), "b2": ("b21", "b22"), "b3": ("b31", "b32", "b33")}


class Backbone:
    """A backbone as far as the aggregator looks at it: a residual stage that follows the map `early`."""

    def __init__(self, height: int = 8, stride: int = 2) -> None:
        torch.manual_seed(0)
        self.shapes = {"early": MapShape(4, height, 6), "late": MapShape(7, -(-height // stride), 6 // stride)}
        downsample = nn.Sequential(nn.Conv2d(4, 7, 1, stride, bias=False), nn.BatchNorm2d(7))
        self.stage = BasicBlock(4, 7, stride, downsample)

    def tail(self, after: str) -> nn.Module:
        return copy.deepcopy(self.stage) if after == "early" else nn.Sequential()


def images(batch: int, height: int = 8) -> Tensor:
    """Return maps `early` of some images."""
    return torch.rand(batch, 4, height, 6, generator=torch.Generator().manual_seed(1))


def mgn(backbone: Backbone, **options: object) -> MultipleGranularity:
    return MGN(source="early", dim=5, **options).build(backbone)  # type: ignore[arg-type]


@pytest.mark.parametrize("height", [12, 8, 7, 3])
@pytest.mark.parametrize(("pooling", "pool"), [("max", F.adaptive_max_pool2d), ("avg", F.adaptive_avg_pool2d)])
def test_views_are_the_published_ones(pooling, pool, height):
    x = images(2, height)
    coarse, fine = Backbone(height, stride=2), Backbone(height, stride=1)
    maps = {"b1": coarse.stage.eval()(x), "b2": fine.stage.eval()(x), "b3": fine.stage(x)}
    aggregator = mgn(coarse, pooling=pooling).eval()
    expected = {}
    for branch, parts in PARTS.items():
        expected[branch] = pool(maps[branch], (1, 1)).flatten(1)
        for i, part in enumerate(parts):
            expected[part] = pool(maps[branch], (len(parts), 1))[:, :, i, 0]
    vectors = aggregator({"early": x}).vectors
    assert vectors.keys() == expected.keys()
    for view, vector in expected.items():
        linear, norm = aggregator.reductions[view][:2]
        reduced = (vector @ linear.weight.T).clamp(min=0) / (1 + norm.eps) ** 0.5
        torch.testing.assert_close(vectors[view], reduced)


def test_the_embedding_joins_the_whole_views_then_the_stripes():
    with torch.device("meta"):
        aggregator = MGN(source="early").build(Backbone())
    assert aggregator.needs == ("early",)
    assert aggregator.embed == ("b1", "b2", "b3", "b21", "b22", "b31", "b32", "b33")
    assert list(aggregator.views) == ["b1", "b2", "b21", "b22", "b3", "b31", "b32", "b33"]
    assert sum(aggregator.views[view] for view in aggregator.embed) == 2048


def test_the_source_is_the_map_after_the_first_block_of_stage_3():
    assert MGN().source == "stage3.0"


def test_branches_start_equal_and_learn_apart():
    backbone = Backbone()
    own = [parameter.clone() for parameter in backbone.stage.parameters()]
    aggregator = mgn(backbone)
    states = [tail.state_dict() for tail in aggregator.tails.values()]
    for state in states[1:]:
        assert all(torch.equal(value, states[0][name]) for name, value in state.items())
    optimizer = torch.optim.SGD(aggregator.parameters(), lr=1.0)
    vectors = aggregator({"early": images(4)}).vectors
    sum(vector.square().sum() * (k + 1) for k, vector in enumerate(vectors.values())).backward()
    optimizer.step()
    states = [tail.state_dict() for tail in aggregator.tails.values()]
    name = next(iter(states[0]))
    assert not torch.equal(states[0][name], states[1][name]) and not torch.equal(states[1][name], states[2][name])
    assert all(torch.equal(a, b) for a, b in zip(own, backbone.stage.parameters(), strict=True))


def test_every_parameter_is_trained():
    aggregator = mgn(Backbone(), pooling="gem")
    vectors = aggregator({"early": images(8)}).vectors
    sum(vector.square().sum() for vector in vectors.values()).backward()
    for name, parameter in aggregator.named_parameters():
        assert parameter.grad is not None and parameter.grad.any(), name


def test_an_image_is_embedded_alone_as_among_others():
    aggregator, x = mgn(Backbone()).eval(), images(3)
    alone, among = aggregator({"early": x[:1]}).vectors, aggregator({"early": x}).vectors
    for view in aggregator.views:
        torch.testing.assert_close(alone[view], among[view][:1])


def test_bfloat16_changes_little():
    aggregator, x = mgn(Backbone(), pooling="gem").eval(), images(3)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = aggregator({"early": x}).vectors
    for view, vector in aggregator({"early": x}).vectors.items():
        torch.testing.assert_close(rounded[view].float(), vector, rtol=0.05, atol=0.05)


def test_it_exports_for_any_batch():
    class Embedding(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.aggregator = mgn(Backbone(height=7))

        def forward(self, x: Tensor) -> Tensor:
            vectors = self.aggregator({"early": x}).vectors
            return torch.cat([vectors[view] for view in self.aggregator.embed], 1)

    model, x = Embedding().eval(), images(5, height=7)
    program = torch.export.export(model, (x[:2],), dynamic_shapes=({0: torch.export.Dim("batch")},))
    torch.testing.assert_close(program.module()(x), model(x))


@pytest.mark.parametrize(("pooling", "pool"), [("max", maximum), ("avg", average)])
def test_the_pooling_is_chosen(pooling, pool):
    assert set(mgn(Backbone(), pooling=pooling).pools.values()) == {pool}


def test_each_view_learns_an_exponent_of_its_own():
    aggregator = mgn(Backbone(), pooling="gem")
    assert all(isinstance(pool, GeneralizedMean) for pool in aggregator.pools.values())
    exponents = [name for name, _ in aggregator.named_parameters() if name.endswith("alpha")]
    assert exponents == [f"exponents.{view}.alpha" for view in aggregator.views]


def test_without_activation_a_view_is_a_product_with_what_was_pooled():
    aggregator, x = mgn(Backbone(), activate=False).eval(), images(2)
    pooled = aggregator.tails["b1"](x).amax((2, 3))
    expected = pooled @ aggregator.reductions["b1"][0].weight.T
    assert expected.min() < 0
    torch.testing.assert_close(aggregator({"early": x}).vectors["b1"], expected)


def test_a_map_with_fewer_rows_than_stripes_is_refused():
    with pytest.raises(ContractError, match="map 'early' has 2 rows, too few for 3 stripes; take larger images"):
        mgn(Backbone(height=2))


def test_stripes_can_be_chosen():
    aggregator = mgn(Backbone(), stripes=(4,))
    assert list(aggregator.views) == ["b1", "b2", "b21", "b22", "b23", "b24"]


def test_a_map_that_is_not_there_is_a_key_error():
    with pytest.raises(KeyError, match="stage9"):
        MGN(source="stage9").build(Backbone())


def test_a_map_that_nothing_follows_is_refused():
    with pytest.raises(ContractError, match="no stage of the backbone follows map 'late'"):
        MGN(source="late").build(Backbone())


def test_the_generalized_mean_of_a_signed_map_is_refused():
    backbone = Backbone()
    backbone.shapes["late"] = MapShape(7, 4, 3, signed=True)
    with pytest.raises(ContractError, match="map 'late' may be negative"):
        mgn(backbone, pooling="gem")
    mgn(backbone, pooling="avg")


@pytest.mark.parametrize("pool", [nn.AvgPool2d(2, ceil_mode=True), nn.AvgPool2d(3, 2, padding=1), nn.MaxPool2d(2)])
def test_branches_keep_the_height_of_their_map_where_poolings_have_the_stride(pool):
    tail = _without_strides(nn.Sequential(pool, nn.Conv2d(4, 7, 3, 2, padding=1)))
    assert tail(torch.zeros(1, 4, 8, 6)).shape == (1, 7, 8, 6)
