"""Pooling of maps into vectors, and the heads behind it."""

import math

import pytest
import torch
from torch import Tensor, nn

from reidcore.builtin.modules.heads import ClassifierHead
from reidcore.builtin.modules.pooling import GeneralizedMean, Pooling, average, maximum
from reidcore.errors import ContractError
from reidcore.types import MapShape


def slow_mean(x: Tensor, alpha: float) -> Tensor:
    result = torch.zeros(x.shape[:2], dtype=torch.float64)
    for b in range(x.shape[0]):
        for c in range(x.shape[1]):
            values = [max(value, 1e-6) for row in x[b, c].double().tolist() for value in row]
            result[b, c] = (sum(value**alpha for value in values) / len(values)) ** (1 / alpha)
    return result


@pytest.fixture
def maps() -> Tensor:
    return torch.rand(2, 3, 4, 5, generator=torch.Generator().manual_seed(0)) * 4


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


def test_negative_values_count_as_almost_0() -> None:
    x = torch.tensor([[[[-5.0, 2.0]]]])
    assert GeneralizedMean(2.0)(x).item() == pytest.approx(math.sqrt(2))


def test_gradients_of_the_generalized_mean_equal_finite_differences(maps: Tensor) -> None:
    pool = GeneralizedMean(3.0)
    maps.requires_grad_(True)
    pool(maps).sum().backward()
    h = 1e-5
    up, down = (slow_mean(maps.detach(), 3 + step).sum().item() for step in (h, -h))
    assert pool.alpha.grad is not None and maps.grad is not None
    assert pool.alpha.grad.item() == pytest.approx((up - down) / (2 * h), rel=1e-4)
    moved = maps.detach().double()
    for place in [(0, 0, 0, 0), (1, 2, 3, 4), tuple((moved == moved.max()).nonzero()[0].tolist())]:
        ends = []
        for step in (h, -h):
            shifted = moved.clone()
            shifted[place] += step
            ends.append(slow_mean(shifted, 3.0).sum().item())
        assert maps.grad[place].item() == pytest.approx((ends[0] - ends[1]) / (2 * h), rel=1e-3)


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


def test_a_signed_map_is_refused_by_the_generalized_mean_only() -> None:
    signed = MapShape(3, 4, 5, signed=True)
    Pooling("tokens", signed, maximum)
    with pytest.raises(ContractError, match="map 'tokens' may be negative"):
        Pooling("tokens", signed, GeneralizedMean(), positive=True)


def test_the_exponent_is_a_parameter_of_the_pooling() -> None:
    pooling = Pooling("stage4", MapShape(3, 4, 5), GeneralizedMean(), positive=True)
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
