"""Cross-entropy and triplet loss, against loops in float64."""

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from reidcore.builtin.modules.classification import CrossEntropy
from reidcore.builtin.modules.pairs import Triplet, pairwise_distance
from reidcore.types import Batch, Output, Step

STEP = Step(number=0, epoch=0)


def output(vectors: Mapping[str, Tensor] | None = None, logits: Mapping[str, Tensor] | None = None) -> Output:
    vectors = vectors or {}
    shifted = {view: vector + torch.arange(vector.shape[1]) for view, vector in vectors.items()}
    return Output(embedding=torch.zeros(0), before=vectors, after=shifted, logits=logits or {})


def batch(labels: Sequence[int]) -> Batch:
    n = len(labels)
    return Batch(
        images=torch.zeros(n, 3, 1, 1, dtype=torch.uint8),
        labels=torch.tensor(labels),
        cameras=torch.zeros(n, dtype=torch.long),
        indices=torch.arange(n),
    )


def cross_entropy(logits: Tensor, labels: Sequence[int], smoothing: float) -> Tensor:
    return CrossEntropy(smoothing, ["v"])(output(logits={"v": logits}), batch(labels), STEP)["cross-entropy"]


def slow_cross_entropy(logits: Tensor, labels: Sequence[int], smoothing: float) -> float:
    terms = []
    for row, label in zip(logits.double().tolist(), labels, strict=True):
        if label == -1:
            continue
        total = sum(math.exp(value) for value in row)
        term = 0.0
        for k, value in enumerate(row):
            target = 1 - smoothing if k == label else smoothing / (len(row) - 1)
            term -= target * math.log(math.exp(value) / total)
        terms.append(term)
    return sum(terms) / len(terms)


def triplet(
    x: Tensor,
    labels: Sequence[int],
    margin: float | None = 0.3,
    normalize: bool = False,
    feature: Literal["before", "after"] = "before",
) -> Tensor:
    return Triplet(margin, feature, normalize, ["v"])(output({"v": x}), batch(labels), STEP)["triplet"]


def slow_triplet(x: Tensor, labels: Sequence[int], margin: float | None, normalize: bool = False) -> float:
    rows = x.double().tolist()
    if normalize:
        rows = [[value / math.hypot(*row) for value in row] for row in rows]
    terms = []
    for a, anchor in enumerate(rows):
        farthest, nearest = -math.inf, math.inf
        for b, other in enumerate(rows):
            if labels[a] == -1 or labels[b] == -1 or a == b:
                continue
            distance = math.dist(anchor, other)
            if labels[a] == labels[b]:
                farthest = max(farthest, distance)
            else:
                nearest = min(nearest, distance)
        if farthest == -math.inf or nearest == math.inf:
            continue
        gap = farthest - nearest
        terms.append(math.log1p(math.exp(gap)) if margin is None else max(0.0, gap + margin))
    return sum(terms) / len(terms)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
@pytest.mark.parametrize("classes", [2, 7])
def test_cross_entropy_equals_a_loop(smoothing: float, classes: int) -> None:
    logits = torch.randn(9, classes, generator=torch.Generator().manual_seed(classes)) * 3
    labels = [position % classes for position in range(9)]
    expected = slow_cross_entropy(logits, labels, smoothing)
    assert cross_entropy(logits, labels, smoothing).item() == pytest.approx(expected, rel=1e-6)


def test_cross_entropy_of_a_hand_computed_case() -> None:
    # p = softmax(ln 2, 0, 0) = (1/2, 1/4, 1/4); targets 0.8, 0.1, 0.1:
    # 0.8 ln 2 + 0.1 ln 4 + 0.1 ln 4 = (0.8 + 0.2 + 0.2) ln 2 = 1.2 ln 2
    logits = torch.tensor([[math.log(2), 0.0, 0.0]])
    assert cross_entropy(logits, [0], 0.2).item() == pytest.approx(1.2 * math.log(2), rel=1e-6)


def test_cross_entropy_leaves_out_images_without_a_class() -> None:
    logits = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    with_unknown = cross_entropy(logits, [0, -1, 2, -1], 0.1)
    torch.testing.assert_close(with_unknown, cross_entropy(logits[[0, 2]], [0, 2], 0.1))


def test_cross_entropy_of_a_batch_without_any_class_is_0_and_can_be_differentiated() -> None:
    logits = torch.randn(3, 4, requires_grad=True)
    loss = cross_entropy(logits, [-1, -1, -1], 0.1)
    loss.backward()
    assert loss.item() == 0
    assert logits.grad is not None and not logits.grad.any()


def test_cross_entropy_is_averaged_over_views() -> None:
    first, second = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(1))
    labels = [0, 1, 2, 3, 0]
    loss = CrossEntropy(0.1, ["a", "b"])(output(logits={"a": first, "b": second, "c": first}), batch(labels), STEP)
    expected = (slow_cross_entropy(first, labels, 0.1) + slow_cross_entropy(second, labels, 0.1)) / 2
    assert loss["cross-entropy"].item() == pytest.approx(expected, rel=1e-6)


def test_cross_entropy_of_a_single_class_is_0() -> None:
    assert cross_entropy(torch.tensor([[3.0], [-2.0]]), [0, 0], 0.1).item() == 0


def test_cross_entropy_of_16_bit_logits_is_computed_in_float32() -> None:
    logits = (torch.randn(8, 50, generator=torch.Generator().manual_seed(2)) * 4).bfloat16()
    labels = list(range(8))
    with torch.autocast("cpu", torch.bfloat16):
        loss = cross_entropy(logits, labels, 0.1)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(slow_cross_entropy(logits, labels, 0.1), rel=1e-5)


def test_cross_entropy_needs_linear_logits_of_its_views() -> None:
    needs = CrossEntropy(0.1, ["a", "b"]).needs
    assert (needs.views, needs.logits) == (("a", "b"), "linear")


@pytest.mark.parametrize("margin", [0.0, 0.3, 2.0, None])
@pytest.mark.parametrize("normalize", [False, True])
def test_triplet_equals_a_loop_over_triples(margin: float | None, normalize: bool) -> None:
    x = torch.randn(12, 5, generator=torch.Generator().manual_seed(3))
    labels = [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    expected = slow_triplet(x, labels, margin, normalize)
    assert triplet(x, labels, margin, normalize).item() == pytest.approx(expected, rel=1e-5)


def test_triplet_of_a_hand_computed_case() -> None:
    # on a line: identity 0 at 0 and 3, identity 1 at 4 and 10
    # anchor 0: farthest 3, nearest 4 -> 3 - 4 + 2 = 1; anchor 3: 3 - 1 + 2 = 4
    # anchor 4: 6 - 1 + 2 = 7; anchor 10: 6 - 7 + 2 = 1; the mean is 13 / 4
    x = torch.tensor([[0.0], [3.0], [4.0], [10.0]])
    assert triplet(x, [0, 0, 1, 1], margin=2.0).item() == pytest.approx(13 / 4)


def test_triplet_with_the_soft_margin_of_a_hand_computed_case() -> None:
    # the gaps of the case above are -1, 2, 5 and -1
    x = torch.tensor([[0.0], [3.0], [4.0], [10.0]])
    expected = sum(math.log(1 + math.exp(gap)) for gap in (-1, 2, 5, -1)) / 4
    assert triplet(x, [0, 0, 1, 1], margin=None).item() == pytest.approx(expected)


def test_normalized_triplet_compares_directions_only() -> None:
    x = torch.randn(8, 4, generator=torch.Generator().manual_seed(4))
    labels = [0, 0, 1, 1, 2, 2, 3, 3]
    scaled = x * torch.arange(1, 9)[:, None]
    torch.testing.assert_close(triplet(scaled, labels, normalize=True), triplet(x, labels, normalize=True))


def test_triplet_reads_the_feature_it_is_told() -> None:
    x = torch.randn(6, 3, generator=torch.Generator().manual_seed(5))
    labels = [0, 0, 1, 1, 2, 2]
    out = output({"v": x})
    for feature in ("before", "after"):
        expected = slow_triplet(getattr(out, feature)["v"], labels, 0.3, normalize=True)
        assert triplet(x, labels, normalize=True, feature=feature).item() == pytest.approx(expected, rel=1e-4)


def test_a_group_of_views_is_their_concatenation_and_groups_are_averaged() -> None:
    a, b, c = torch.randn(3, 6, 2, generator=torch.Generator().manual_seed(6))
    labels = [0, 0, 1, 1, 2, 2]
    loss = Triplet(0.3, "before", False, ["a", ["b", "c"]])
    found = loss(output({"a": a, "b": b, "c": c}), batch(labels), STEP)["triplet"]
    expected = (slow_triplet(a, labels, 0.3) + slow_triplet(torch.cat([b, c], 1), labels, 0.3)) / 2
    assert found.item() == pytest.approx(expected, rel=1e-5)
    assert loss.needs.views == ("a", "b", "c")


def test_anchors_without_a_positive_are_left_out() -> None:
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(7))
    labels = [0, 0, 1, 2, 2]
    assert triplet(x, labels, 5.0).item() == pytest.approx(slow_triplet(x, labels, 5.0), rel=1e-5)


def test_images_without_a_class_are_neither_anchor_nor_positive_nor_negative() -> None:
    x = torch.randn(7, 3, generator=torch.Generator().manual_seed(8))
    labels = [0, -1, 0, 1, -1, 1, -1]
    known = [0, 2, 3, 5]
    torch.testing.assert_close(triplet(x, labels, 5.0), triplet(x[known], [labels[i] for i in known], 5.0))


@pytest.mark.parametrize("labels", [[0, 1, 2], [0, 0, 0], [-1, -1, -1], [0, 0, -1]])
def test_triplet_of_a_batch_without_any_anchor_is_0_and_can_be_differentiated(labels: list[int]) -> None:
    x = torch.randn(3, 4, requires_grad=True)
    loss = triplet(x, labels)
    loss.backward()
    assert loss.item() == 0
    assert x.grad is not None and not x.grad.any()


def test_gradient_is_finite_where_two_embeddings_coincide() -> None:
    # whole numbers, so that their squared distance is 0 without rounding
    x = torch.randint(-9, 10, (6, 4), generator=torch.Generator().manual_seed(9)).float()
    x[1] = x[0]
    x[4] = x[2]
    x.requires_grad_(True)
    triplet(x, [0, 0, 1, 1, 2, 2], margin=None).backward()
    assert x.grad is not None and x.grad.isfinite().all() and x.grad.any()


def test_triplet_gradient_equals_finite_differences_of_the_loop() -> None:
    x = torch.randn(6, 3, generator=torch.Generator().manual_seed(10), requires_grad=True)
    labels = [0, 0, 1, 1, 2, 2]
    triplet(x, labels, margin=None).backward()
    assert x.grad is not None
    h = 1e-6
    for row in range(6):
        for column in range(3):
            shift = torch.zeros(6, 3, dtype=torch.float64)
            shift[row, column] = h
            up = slow_triplet(x.detach().double() + shift, labels, None)
            down = slow_triplet(x.detach().double() - shift, labels, None)
            assert x.grad[row, column].item() == pytest.approx((up - down) / (2 * h), abs=1e-5)


def test_gradient_of_distances_passes_gradcheck() -> None:
    x = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(11), requires_grad=True)
    apart = ~torch.eye(4, dtype=torch.bool)
    assert torch.autograd.gradcheck(lambda rows: pairwise_distance(rows)[apart], (x,))


def test_distances_stay_exact_to_float32_under_autocast() -> None:
    x = torch.randn(16, 64, generator=torch.Generator().manual_seed(12)).bfloat16() * 10
    labels = [position // 4 for position in range(16)]
    with torch.autocast("cpu", torch.bfloat16):
        loss = triplet(x, labels)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(slow_triplet(x, labels, 0.3), rel=1e-4)


@settings(deadline=None, max_examples=40)
@given(data=st.data(), labels=st.lists(st.integers(-1, 3), min_size=2, max_size=9))
def test_losses_do_not_depend_on_the_order_of_images(data: st.DataObject, labels: list[int]) -> None:
    order = data.draw(st.permutations(range(len(labels))))
    x = torch.randn(len(labels), 4, generator=torch.Generator().manual_seed(data.draw(st.integers(0, 99))))
    shuffled = [labels[index] for index in order]
    for loss in (
        lambda rows, names: triplet(rows, names, margin=0.3),
        lambda rows, names: triplet(rows, names, margin=None, normalize=True),
        lambda rows, names: cross_entropy(rows, names, 0.1),
    ):
        torch.testing.assert_close(loss(x[list(order)], shuffled), loss(x, labels), rtol=1e-4, atol=1e-5)
