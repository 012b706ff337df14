"""Pooling of maps into vectors, and the heads behind it."""

import math
from itertools import product

import pytest
import torch
from torch import Tensor, nn

from reidcore.builtin import aggregators, heads
from reidcore.builtin.modules.heads import ClassifierHead, FullyConnectedHead, ReductionHead
from reidcore.builtin.modules.pooling import Attention, GeneralizedMean, Pooling, average, average_plus_maximum, maximum
from reidcore.errors import ContractError
from reidcore.types import MapShape


def slow_mean(x: Tensor, alpha: float) -> Tensor:
    result = torch.zeros(x.shape[:2], dtype=torch.float64)
    for b in range(x.shape[0]):
        for c in range(x.shape[1]):
            values = [max(value, 1e-6) for row in x[b, c].double().tolist() for value in row]
            result[b, c] = (sum(value**alpha for value in values) / len(values)) ** (1 / alpha)
    return result


def slow_attention(x: Tensor, score: Tensor) -> Tensor:
    """(B, C, H, W) and (C, C) scores -> equation 4, with |X_c * W_c| as the sum of the weights."""
    result = torch.zeros(x.shape[:2], dtype=x.dtype)
    for b in range(x.shape[0]):
        positions = x[b].flatten(1).T.tolist()
        for c, row in enumerate(score.tolist()):
            weights = [
                math.exp(sum(s * value for s, value in zip(row, position, strict=True))) for position in positions
            ]
            result[b, c] = sum(w * position[c] for w, position in zip(weights, positions, strict=True)) / sum(weights)
    return result


class Maps:
    """A backbone as far as an aggregator's config looks at it."""

    def __init__(self, **shapes: MapShape) -> None:
        self.shapes = shapes


POOLS = [
    config
    for config in vars(aggregators).values()
    if isinstance(config, type) and aggregators._OfMap in config.__mro__[1:]
]
HEADS = [heads.Linear, heads.BNNeck, heads.Reduction, heads.FullyConnected]
SMALL = {heads.Reduction: {"dim": 2, "dropout": 0.0}, heads.FullyConnected: {"dim": 2}}


@pytest.fixture
def maps() -> Tensor:
    return torch.rand(2, 3, 4, 5, generator=torch.Generator().manual_seed(0)) * 4


def test_average_and_maximum_equal_loops(maps: Tensor) -> None:
    for b, c in product(range(2), range(3)):
        values = [value for row in (maps[b, c] - 2).tolist() for value in row]
        assert average(maps - 2)[b, c].item() == pytest.approx(sum(values) / len(values), abs=1e-6)
        assert maximum(maps - 2)[b, c].item() == max(values)


def test_average_and_maximum_of_a_hand_case() -> None:
    x = torch.tensor([[[[1.0, 2.0], [3.0, 6.0]]]])
    assert average(x).tolist() == [[3.0]]
    assert maximum(x).tolist() == [[6.0]]


def test_generalized_mean_of_a_hand_case() -> None:
    # (1³ + 1³ + 2³ + 2³) / 4 = 4.5, and its cube root
    x = torch.tensor([[[[1.0, 1.0], [2.0, 2.0]]]])
    assert GeneralizedMean(3.0)(x).item() == pytest.approx(4.5 ** (1 / 3))


@pytest.mark.parametrize("alpha", [0.5, 1.0, 3.0, 6.5])
def test_generalized_mean_equals_a_loop(maps: Tensor, alpha: float) -> None:
    maps[0, 0, 0] = 0
    torch.testing.assert_close(GeneralizedMean(alpha)(maps).double(), slow_mean(maps, alpha), rtol=1e-5, atol=1e-7)


def test_generalized_mean_with_exponent_1_is_the_average(maps: Tensor) -> None:
    torch.testing.assert_close(GeneralizedMean(1)(maps), average(maps))


def test_generalized_mean_with_a_large_exponent_is_the_maximum(maps: Tensor) -> None:
    # between max · 20^(-1/alpha) and max, of 20 positions
    torch.testing.assert_close(GeneralizedMean(1e4)(maps * 30), maximum(maps * 30), rtol=1e-3, atol=0)


@pytest.mark.parametrize("alpha", [0.5, 3.0])
def test_gradients_of_the_generalized_mean_equal_finite_differences(maps: Tensor, alpha: float) -> None:
    pool = GeneralizedMean(alpha).double()
    x = maps.double().requires_grad_(True)
    assert torch.autograd.gradcheck(
        lambda x, alpha: torch.func.functional_call(pool, {"alpha": alpha}, x), (x, pool.alpha)
    )


def test_a_fixed_exponent_does_not_learn() -> None:
    assert not GeneralizedMean(3.0, learn=False).alpha.requires_grad


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_16_bit_maps_do_not_overflow(dtype: torch.dtype) -> None:
    x = torch.full((1, 2, 3, 3), 200.0, dtype=dtype)  # 200³ is far above the 65504 of float16
    with torch.autocast("cpu", torch.bfloat16):
        pooled = GeneralizedMean(3.0)(x)
    assert pooled.dtype == torch.float32
    torch.testing.assert_close(pooled, torch.full((1, 2), 200.0))


@pytest.mark.parametrize("alpha", [3.0, 20.0])
def test_a_channel_of_zeros_has_finite_gradients(alpha: float) -> None:
    x = torch.zeros(1, 1, 4, 4, requires_grad=True)
    pool = GeneralizedMean(alpha)
    pool(x).sum().backward()
    assert x.grad is not None and x.grad.isfinite().all()
    assert pool.alpha.grad is not None and pool.alpha.grad.isfinite().all()


def test_a_pooling_publishes_its_map_and_its_view(maps: Tensor) -> None:
    pooling = Pooling("stage3", MapShape(3, 4, 5), average)
    assert (pooling.needs, pooling.views, pooling.embed, pooling.extras) == (
        ("stage3",),
        {"global": 3},
        ("global",),
        {},
    )
    torch.testing.assert_close(pooling({"stage3": maps, "other": maps * 2}).vectors["global"], maps.mean((2, 3)))


def test_average_and_maximum_are_added() -> None:
    assert average_plus_maximum(torch.tensor([[[[1.0, 2.0], [3.0, 6.0]]]])).tolist() == [[9.0]]


def test_attention_of_a_hand_case() -> None:
    # scores ln 3 · (0, 1): weights 1/4 and 3/4 of the values 4 and 8
    pool = Attention(2)
    pool.score.weight.data = torch.tensor([[0.0, math.log(3)], [0.0, 0.0]]).reshape(2, 2, 1, 1)
    x = torch.tensor([[[[4.0, 8.0]], [[0.0, 1.0]]]])
    torch.testing.assert_close(pool(x), torch.tensor([[7.0, 0.5]]))


def test_attention_equals_a_loop(maps: Tensor) -> None:
    pool = Attention(3).double()
    nn.init.normal_(pool.score.weight, generator=torch.Generator().manual_seed(1))
    x = maps.double() - 2
    torch.testing.assert_close(pool(x), slow_attention(x, pool.score.weight.flatten(1)))


def test_attention_starts_as_the_average_and_learns(maps: Tensor) -> None:
    pool = Attention(3)
    pooled = pool(maps)
    torch.testing.assert_close(pooled, average(maps))
    pooled.sum().backward()
    assert pool.score.weight.grad is not None and pool.score.weight.grad.abs().min() > 0


def test_gradients_of_attention_equal_finite_differences(maps: Tensor) -> None:
    pool = Attention(3).double()
    weight = torch.randn(
        3, 3, 1, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(1), requires_grad=True
    )
    x = maps.double().requires_grad_(True)
    assert torch.autograd.gradcheck(
        lambda x, weight: torch.func.functional_call(pool, {"score.weight": weight}, x), (x, weight)
    )


def test_weights_of_attention_are_exact_in_bfloat16() -> None:
    # 512 equal weights: rounded to 16 bits before they are added, their sum would stop growing at 1/2
    x = torch.full((1, 2, 32, 16), 3.0, dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        pooled = Attention(2)(x)
    torch.testing.assert_close(pooled, torch.full((1, 2), 3.0))


@pytest.mark.parametrize("config", POOLS)
def test_a_pooling_takes_the_last_map_or_the_one_it_is_told(config: type) -> None:
    side = 1 if config is aggregators.Identity else 2
    backbone = Maps(stage3=MapShape(2, side, side), stage4=MapShape(3, side, side))
    assert config().build(backbone).needs == ("stage4",)
    chosen = config(source="stage3").build(backbone)
    assert (chosen.needs, chosen.views) == (("stage3",), {"global": 2})
    with pytest.raises(KeyError, match="stage5"):
        config(source="stage5").build(backbone)


def test_attention_refuses_a_map_of_one_position() -> None:
    with pytest.raises(ContractError, match="map 'token' has one position, and 'attention' weighs several; choose"):
        aggregators.Attention().build(Maps(token=MapShape(3, 1, 1)))


@pytest.mark.parametrize("config", [config for config in POOLS if config is not aggregators.Attention])
def test_a_pooling_of_one_position_is_its_value(config: type) -> None:
    x = torch.rand(1, 3, 1, 1) + 0.1
    pooled = config().build(Maps(token=MapShape(3, 1, 1)))({"token": x}).vectors["global"]
    torch.testing.assert_close(pooled, x.flatten(1) * (2 if config is aggregators.AverageMax else 1))


@pytest.mark.parametrize("config", POOLS)
def test_a_pooling_exports_for_any_batch(config: type) -> None:
    side = 1 if config is aggregators.Identity else 4

    class Vector(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pooling = config().build(Maps(stage4=MapShape(3, side, side)))

        def forward(self, x: Tensor) -> Tensor:
            vector: Tensor = self.pooling({"stage4": x}).vectors["global"]
            return vector

    model, x = Vector().eval(), torch.rand(5, 3, side, side)
    program = torch.export.export(model, (x[:2],), dynamic_shapes=({0: torch.export.Dim("batch")},))
    torch.testing.assert_close(program.module()(x), model(x))


def test_a_signed_map_is_refused_by_the_generalized_mean_only() -> None:
    for config in POOLS:
        side = 1 if config is aggregators.Identity else 2
        backbone = Maps(map=MapShape(3, side, side, signed=True))
        if config is aggregators.GeneralizedMean:
            with pytest.raises(ContractError, match=r"map 'map' may be negative.* write signed = \"rectify\""):
                config().build(backbone)
        else:
            config().build(backbone)


def test_a_signed_map_is_rectified_on_request() -> None:
    pooling = aggregators.GeneralizedMean(alpha=2.0, signed="rectify").build(
        Maps(patches=MapShape(1, 1, 2, signed=True))
    )
    pooled = pooling({"patches": torch.tensor([[[[-5.0, 2.0]]]])}).vectors["global"]
    assert pooled.item() == pytest.approx(math.sqrt(2))  # of 0² and 2²


def test_identity_refuses_a_map_of_several_positions() -> None:
    with pytest.raises(ContractError, match="map 'stage4' has 8x4 positions, and 'identity' takes one; choose 'avg'"):
        aggregators.Identity().build(Maps(stage4=MapShape(3, 8, 4)))


def test_the_exponent_is_a_parameter_of_the_pooling() -> None:
    pooling = Pooling("stage4", MapShape(3, 4, 5), GeneralizedMean())
    assert [name for name, _ in pooling.named_parameters()] == ["pool.alpha"]


def test_a_linear_head_multiplies_with_its_rows() -> None:
    head = ClassifierHead(2, 3, neck=False)
    head.resize(3, torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, -1.0]]))
    out = head(torch.tensor([[2.0, 5.0]]))
    assert out.before.tolist() == out.after.tolist() == [[2.0, 5.0]]
    assert out.logits is not None and out.logits.tolist() == [[2.0, 5.0, -3.0]]


def test_a_bnneck_normalizes_with_the_batch_in_training() -> None:
    # 1 and 3: mean 2, variance 1; -> -1 and 1, but for the norm's eps of 1e-5
    out = ClassifierHead(1, 4, neck=True)(torch.tensor([[1.0], [3.0]]))
    assert out.before.tolist() == [[1.0], [3.0]]
    torch.testing.assert_close(out.after, torch.tensor([[-1.0], [1.0]]), rtol=1e-4, atol=0)


def test_a_bnneck_evaluates_with_running_statistics() -> None:
    head = ClassifierHead(2, 4, neck=True).eval()
    assert isinstance(head.norm, nn.BatchNorm1d)
    head.norm.running_mean = torch.tensor([1.0, 2.0])
    head.norm.running_var = torch.tensor([4.0, 9.0])
    # (5 - 1) / 2 and (5 - 2) / 3, for one image as well as for many
    torch.testing.assert_close(head(torch.tensor([[5.0, 5.0]])).after, torch.tensor([[2.0, 1.0]]), rtol=1e-4, atol=0)


def test_the_logits_of_a_bnneck_come_from_after_the_norm() -> None:
    head = ClassifierHead(3, 5, neck=True)
    out = head(torch.randn(4, 3))
    assert out.logits is not None and head.classifier is not None
    torch.testing.assert_close(out.logits, out.after @ head.classifier.weight.T)


def test_the_shift_of_a_bnneck_stays_0() -> None:
    head = ClassifierHead(3, 5, neck=True)
    optimizer = torch.optim.SGD([p for p in head.parameters() if p.requires_grad], lr=1.0)
    out = head(torch.randn(8, 3) + 7)
    assert out.logits is not None
    before = head.norm.weight.clone()
    nn.functional.cross_entropy(out.logits, torch.arange(8) % 5).backward()
    optimizer.step()
    assert not head.norm.bias.any()
    assert not torch.equal(head.norm.weight, before)


@pytest.mark.parametrize("neck", [False, True])
def test_a_head_without_classes_has_no_logits(neck: bool) -> None:
    head = ClassifierHead(3, 0, neck=neck)
    assert head(torch.randn(2, 3)).logits is None
    assert not any("classifier" in name for name in head.state_dict())


@pytest.mark.parametrize("neck", [False, True])
def test_resizing_takes_the_rows_it_is_given(neck: bool) -> None:
    head = ClassifierHead(3, 5, neck=neck)
    rows = torch.randn(2, 3)
    head.resize(2, rows)
    assert head.classifier is not None
    assert torch.equal(head.classifier.weight, rows) and head.classifier.weight.requires_grad
    rows.zero_()
    assert head.classifier.weight.any()  # a copy


def test_resizing_leaves_the_norm_alone() -> None:
    head = ClassifierHead(3, 5, neck=True)
    head(torch.randn(8, 3) + 3)
    mean = head.norm.running_mean.clone()
    head.resize(9)
    assert torch.equal(head.norm.running_mean, mean)
    assert head(torch.randn(2, 3)).logits.shape == (2, 9)


def test_resizing_to_no_classes_drops_the_classifier() -> None:
    head = ClassifierHead(3, 5, neck=True)
    head.resize(0)
    assert head(torch.randn(2, 3)).logits is None


def test_resizing_keeps_the_device() -> None:
    head = ClassifierHead(3, 5, neck=False).to("meta")
    head.resize(7)
    assert head.classifier is not None and head.classifier.weight.device.type == "meta"


def test_fresh_rows_are_small_and_random() -> None:
    torch.manual_seed(0)
    weight = ClassifierHead(64, 500, neck=False).classifier.weight
    assert weight.std().item() == pytest.approx(0.01, rel=0.03)
    assert weight.mean().item() == pytest.approx(0.0, abs=3e-4)


def test_retrieval_compares_what_the_head_says() -> None:
    x = torch.rand(4, 3)
    for embed in ("before", "after"):
        out = ClassifierHead(3, 2, neck=True, embed=embed)(x)
        assert torch.equal(out.embedding, getattr(out, embed))
    assert not torch.equal(out.before, out.after)


def test_a_bnneck_equals_equation_5() -> None:
    x = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    head = ClassifierHead(3, 0, neck=True)
    nn.init.uniform_(head.norm.weight)
    after = head(x).after
    for c, scale in enumerate(head.norm.weight.tolist()):
        values = x[:, c].tolist()
        mu = sum(values) / 6
        variance = sum((value - mu) ** 2 for value in values) / 6
        for i, value in enumerate(values):
            assert after[i, c].item() == pytest.approx(scale * (value - mu) / math.sqrt(variance + 1e-5), abs=1e-5)


def test_cosine_logits_are_cosines_whatever_the_lengths() -> None:
    head = ClassifierHead(2, 3, neck=False, logits="cosine")
    head.resize(3, torch.tensor([[5.0, 0.0], [0.0, -0.1], [2.0, 2.0]]))
    logits = head(torch.tensor([[3.0, 4.0], [-7.0, 0.0]])).logits
    expected = torch.tensor([[0.6, -0.8, 1.4 / math.sqrt(2)], [-1.0, 0.0, -1 / math.sqrt(2)]])
    torch.testing.assert_close(logits, expected)
    assert head.logits == "cosine"


def test_cosines_of_a_bnneck_are_those_of_what_is_after_the_norm() -> None:
    head = ClassifierHead(3, 5, neck=True, logits="cosine")
    out = head(torch.randn(4, 3) + 5)
    for i in range(4):
        for k in range(5):
            cosine = nn.functional.cosine_similarity(out.after[i], head.classifier.weight[k], dim=0)
            torch.testing.assert_close(out.logits[i, k], cosine)


def test_cosine_logits_stay_float32_under_autocast() -> None:
    head, x = ClassifierHead(64, 9, neck=True, logits="cosine").eval(), torch.randn(4, 64)
    with torch.autocast("cpu", torch.bfloat16):
        logits = head(x).logits
    torch.testing.assert_close(logits, head(x).logits, rtol=0, atol=1e-6)


@pytest.mark.parametrize("config", HEADS)
def test_a_head_says_which_logits_it_gives(config: type) -> None:
    assert config().build(4, 2).logits == "linear"
    assert config(classifier="cosine").build(4, 2).logits == "cosine"


@pytest.mark.parametrize("classifier", ["linear", "cosine"])
@pytest.mark.parametrize("config", HEADS)
def test_gradients_of_a_head_equal_finite_differences(config: type, classifier: str) -> None:
    torch.manual_seed(0)
    head = config(classifier=classifier, **SMALL.get(config, {}))
    head = head.build(3, 4).double()
    names = [name for name, parameter in head.named_parameters() if parameter.requires_grad]
    x = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)

    def logits(x: Tensor, *parameters: Tensor) -> Tensor:
        result: Tensor = torch.func.functional_call(head, dict(zip(names, parameters, strict=True)), x).logits
        return result

    assert torch.autograd.gradcheck(logits, (x, *(head.get_parameter(name) for name in names)))


@pytest.mark.parametrize("classifier", ["linear", "cosine"])
@pytest.mark.parametrize("config", HEADS)
def test_a_head_evaluates_one_image_in_bfloat16_as_among_others(config: type, classifier: str) -> None:
    head, x = config(classifier=classifier).build(16, 7).eval(), torch.randn(3, 16)
    with torch.autocast("cpu", torch.bfloat16):
        one, all_ = head(x[:1].bfloat16()), head(x.bfloat16())
    assert one.logits.shape == (1, 7) and one.embedding.shape == (1, head.dim)
    for name in ("before", "after", "logits", "embedding"):
        torch.testing.assert_close(getattr(one, name), getattr(all_, name)[:1], rtol=0.02, atol=0.02)


@pytest.mark.parametrize("config", HEADS)
def test_a_head_builds_on_the_meta_device(config: type) -> None:
    with torch.device("meta"):
        head = config(classifier="cosine").build(16, 7)
    assert all(parameter.is_meta for parameter in head.parameters())
    assert head.classifier.weight.shape == (7, head.dim)


def test_a_reduction_equals_its_layers_one_by_one() -> None:
    # dim 2 -> 1: hidden (1, -1) and (3, -5) of two images are normed to (-1, 1) and (1, -1), rectified, added up
    head = ReductionHead(2, 3, dim=1, dropout=0.0)
    head.reduction[0].weight.data = torch.tensor([[1.0, 0.0], [0.0, -1.0]])
    head.reduction[4].weight.data = torch.tensor([[2.0, 3.0]])
    head.resize(3, torch.tensor([[1.0], [0.5], [-1.0]]))
    out = head(torch.tensor([[1.0, 1.0], [3.0, 5.0]]))
    expected = torch.tensor([[3.0], [2.0]])
    for vector in (out.before, out.after, out.embedding):
        torch.testing.assert_close(vector, expected, rtol=1e-4, atol=0)
    torch.testing.assert_close(out.logits, expected * torch.tensor([[1.0, 0.5, -1.0]]), rtol=1e-4, atol=0)


def test_a_reduction_drops_in_training_only() -> None:
    head, x = heads.Reduction(dim=8).build(64, 0), torch.randn(16, 64)
    hidden = head.reduction[:3](x)
    dropped = head.reduction[3](hidden)
    assert (dropped[hidden > 0] == 0).float().mean().item() == pytest.approx(0.5, abs=0.1)
    head.eval()
    assert torch.equal(head(x).embedding, head(x).embedding)


def test_a_reduction_reduces_to_512_numbers() -> None:
    head = heads.Reduction().build(2048, 3)
    assert head.dim == 512
    assert head.eval()(torch.randn(1, 2048)).embedding.shape == (1, 512)


def test_layers_of_a_reduction_start_as_published() -> None:
    torch.manual_seed(0)
    head = heads.Reduction(dim=64).build(256, 3)
    assert head.reduction[0].weight.std().item() == pytest.approx(math.sqrt(2 / 256), rel=0.03)
    assert head.reduction[4].weight.std().item() == pytest.approx(math.sqrt(2 / 64), rel=0.03)
    assert head.reduction[1].weight.eq(1).all() and not head.reduction[1].bias.any()


def test_a_fully_connected_head_equals_its_layers_one_by_one() -> None:
    # the first image: 2 * 4 - 1 + 1 = 8 -> (8 - 2) / 3 + 0.5 = 2.5, and 1 - 4 = -3, rectified
    head = FullyConnectedHead(2, 2, dim=2).eval()
    head.fc[0].weight.data = torch.tensor([[2.0, -1.0], [-1.0, 1.0]])
    head.fc[0].bias.data = torch.tensor([1.0, 0.0])
    head.fc[1].running_mean, head.fc[1].running_var = torch.tensor([2.0, 0.0]), torch.tensor([9.0, 1.0])
    head.fc[1].weight.data, head.fc[1].bias.data = torch.tensor([1.0, 2.0]), torch.tensor([0.5, 0.0])
    head.resize(2, torch.tensor([[1.0, 5.0], [-2.0, 5.0]]))
    out = head(torch.tensor([[4.0, 1.0], [0.0, 1.5]]))
    # the second image: -1.5 + 1 = -0.5 -> (-0.5 - 2) / 3 + 0.5 = -1/3, rectified, and 1.5 * 2 = 3
    expected = torch.tensor([[2.5, 0.0], [0.0, 3.0]])
    for vector in (out.before, out.after, out.embedding):
        torch.testing.assert_close(vector, expected, rtol=1e-4, atol=0)
    torch.testing.assert_close(out.logits, torch.tensor([[2.5, -5.0], [15.0, 15.0]]), rtol=1e-4, atol=0)


def test_a_fully_connected_head_puts_out_512_numbers() -> None:
    head = heads.FullyConnected().build(384, 3)
    assert head.dim == 512 and head.eval()(torch.randn(1, 384)).embedding.shape == (1, 512)


def test_a_fully_connected_head_starts_as_published() -> None:
    torch.manual_seed(0)
    head = heads.FullyConnected(dim=64).build(256, 3)
    assert head.fc[0].weight.std().item() == pytest.approx(0.01, rel=0.03)
    assert not head.fc[0].bias.any() and head.fc[1].weight.eq(1).all()


@pytest.mark.parametrize("shape", [(1, 3), (5, 1), (5,), (4, 3)])
def test_rows_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    head = ClassifierHead(3, 2, neck=False)
    with pytest.raises(ContractError, match=r"found classifier rows of shape .*; expected \(5, 3\), one row a class"):
        head.resize(5, torch.zeros(shape))
    assert head.classifier.weight.shape == (2, 3)  # as it was


def test_resizing_keeps_the_type() -> None:
    head = ClassifierHead(3, 5, neck=True).double()
    head.resize(7)
    assert head(torch.randn(2, 3).double()).logits.dtype == torch.float64
