"""Margin losses, focal loss, pair losses and centre loss, against loops in float64 written from their equations."""

import math
from itertools import product

import pytest
import torch

from reidcore.builtin.modules.classification import (
    AdaptiveCrossEntropy,
    ArcFace,
    BinaryCrossEntropy,
    CircleSoftmax,
    CosFace,
    CrossEntropy,
    Focal,
)
from reidcore.builtin.modules.pairs import Center, PairCircle, PairCosFace, Triplet
from reidcore.types import Batch, Output, Step

STEP = Step(number=0, epoch=0)
LABELS = [0, 0, 1, 1, 2, 2, 2, 3, 0, -1]


def batch(labels):
    """Return a batch of which only the labels matter."""
    n = len(labels)
    zeros = torch.zeros(n, dtype=torch.long)
    return Batch(torch.zeros(n, 3, 1, 1, dtype=torch.uint8), torch.tensor(labels), zeros, torch.arange(n))


def output(vectors=None, logits=None):
    """Return an output with one view, "v"."""
    vectors = {} if vectors is None else {"v": vectors}
    return Output(torch.zeros(0), before=vectors, after=vectors, logits={} if logits is None else {"v": logits})


def of_logits(loss, logits, labels):
    (value,) = loss(output(logits=logits), batch(labels), STEP).values()
    return value


def of_vectors(loss, vectors, labels):
    (value,) = loss(output(vectors), batch(labels), STEP).values()
    return value


def logits(rows=10, classes=4, seed=0, scale=2.0):
    return torch.randn(rows, classes, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * scale


def cosines(rows=10, classes=4, seed=0):
    return torch.rand(rows, classes, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * 1.98 - 0.99


def softmax(row):
    total = sum(math.exp(value) for value in row)
    return [math.exp(value) / total for value in row]


def targets(label, classes, smoothing, spread):
    """Return the target of each class."""
    if spread == "all":
        return [(1 - smoothing) * (k == label) + smoothing / classes for k in range(classes)]
    return [1 - smoothing if k == label else smoothing / (classes - 1) for k in range(classes)]


def mean_over_labelled(rows, labels, term):
    terms = [term(row, label) for row, label in zip(rows.tolist(), labels, strict=True) if label != -1]
    return sum(terms) / len(terms)


@pytest.mark.parametrize("spread", ["others", "all"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_equals_a_loop_in_both_conventions_of_the_smoothed_target(spread, smoothing):
    x = logits()

    def term(row, label):
        return -sum(
            t * math.log(p) for t, p in zip(targets(label, len(row), smoothing, spread), softmax(row), strict=True)
        )

    found = of_logits(CrossEntropy(smoothing, ["v"], spread), x, LABELS)
    assert found.item() == pytest.approx(mean_over_labelled(x, LABELS, term), rel=1e-12)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_with_smoothing_over_all_classes_cross_entropy_is_torchs(smoothing):
    x = logits()
    expected = torch.nn.functional.cross_entropy(x[:9], torch.tensor(LABELS[:9]), label_smoothing=smoothing)
    assert of_logits(CrossEntropy(smoothing, ["v"], "all"), x, LABELS).item() == pytest.approx(expected.item())


@pytest.mark.parametrize("spread", ["others", "all"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_binary_form_is_equation_6_with_its_sign_mended(spread, smoothing):
    x = logits()

    def term(row, label):
        return -sum(
            y * math.log(p) + (1 - y) * math.log(1 - p)
            for y, p in zip(targets(label, len(row), smoothing, spread), softmax(row), strict=True)
        )

    found = of_logits(BinaryCrossEntropy(smoothing, ["v"], spread), x, LABELS)
    assert found.item() == pytest.approx(mean_over_labelled(x, LABELS, term), rel=1e-9)


def test_the_binary_form_is_finite_for_a_class_that_is_certain():
    x = torch.tensor([[500.0, -500.0, 0.0]], requires_grad=True)
    for label in (0, 1):
        loss = of_logits(BinaryCrossEntropy(0.1, ["v"]), x, [label])
        assert loss.isfinite() and torch.autograd.grad(loss, x)[0].isfinite().all()


def test_the_adaptive_form_smooths_by_a_share_of_the_true_classs_probability():
    x = logits()

    def term(row, label):
        p = softmax(row)
        return -sum(t * math.log(q) for t, q in zip(targets(label, len(row), 0.2 * p[label], "others"), p, strict=True))

    found = of_logits(AdaptiveCrossEntropy(0.2, ["v"]), x, LABELS)
    assert found.item() == pytest.approx(mean_over_labelled(x, LABELS, term), rel=1e-12)


@pytest.mark.parametrize("gamma", [0.0, 2.0])
def test_focal_loss_equals_a_loop(gamma):
    x = logits()

    def term(row, label):
        p = softmax(row)[label]
        return -0.25 * (1 - p) ** gamma * math.log(p)

    found = of_logits(Focal(0.25, gamma, ["v"]), x, LABELS)
    assert found.item() == pytest.approx(mean_over_labelled(x, LABELS, term), rel=1e-9)


def arcface(c, m):
    angle = math.acos(c)
    return math.cos(angle + m) if angle + m <= math.pi else c - m * math.sin(m)


def circle(c, m, true):
    return max(0.0, 1 + m - c) * (c - (1 - m)) if true else max(0.0, c + m) * (c - m)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize(
    ("make", "score"),
    [
        (CosFace, lambda c, m, true: c - m if true else c),
        (ArcFace, lambda c, m, true: arcface(c, m) if true else c),
        (CircleSoftmax, circle),
    ],
)
@pytest.mark.parametrize("margin", [0.0, 0.35])
def test_margin_losses_equal_loops(make, score, margin, smoothing):
    x = cosines(rows=40)
    labels = [position % 5 - 1 for position in range(40)]
    scale = 16.0

    def term(row, label):
        scores = [scale * score(c, margin, k == label) for k, c in enumerate(row)]
        p = softmax(scores)
        return -sum(t * math.log(q) for t, q in zip(targets(label, len(row), smoothing, "others"), p, strict=True))

    found = of_logits(make(scale, margin, smoothing, ["v"]), x, labels)
    assert found.item() == pytest.approx(mean_over_labelled(x, labels, term), rel=1e-6)


def test_arcface_of_a_hand_computed_case():
    # the angle is 60 degrees and the margin 30: cos 90 = 0 against the other class's 0.5 gives log(1 + e^0.5)
    loss = of_logits(ArcFace(1.0, math.pi / 6, 0.0, ["v"]), torch.tensor([[0.5, 0.5]], dtype=torch.float64), [0])
    assert loss.item() == pytest.approx(math.log(1 + math.exp(0.5)))


@pytest.mark.parametrize("end", [-1.0, 1.0, -1.0000001, 1.0000001])
def test_arcface_is_finite_and_falls_at_the_ends_of_the_cosine(end):
    x = torch.tensor([[end, 0.0]], requires_grad=True)
    loss = of_logits(ArcFace(64.0, 0.5, 0.0, ["v"]), x, [0])
    (gradient,) = torch.autograd.grad(loss, x)
    assert loss.isfinite() and gradient.isfinite().all()
    assert gradient[0, 0] <= 0


def test_arcface_never_rewards_a_larger_angle():
    c = torch.linspace(-1, 1, 2001, dtype=torch.float64)
    rows = torch.stack([c, torch.zeros_like(c)], 1)
    losses = torch.stack([of_logits(ArcFace(1.0, 0.5, 0.0, ["v"]), row[None], [0]) for row in rows])
    assert (losses.diff() < 1e-3).all()


def test_classification_losses_say_which_logits_they_need():
    assert {loss.logits for loss in (CrossEntropy, Focal)} == {"linear"}
    assert {loss.logits for loss in (CosFace, ArcFace, CircleSoftmax)} == {"cosine"}


def normalized(row):
    length = math.sqrt(sum(value * value for value in row))
    return [value / length for value in row]


def cosine(a, b):
    return sum(p * q for p, q in zip(normalized(a), normalized(b), strict=True))


def pairs(labels):
    """Yield each anchor with its positives and negatives."""
    for a, label in enumerate(labels):
        positives = [b for b, other in enumerate(labels) if b != a and label != -1 and other == label]
        negatives = [b for b, other in enumerate(labels) if label != -1 and other not in (-1, label)]
        if positives and negatives:
            yield a, positives, negatives


def vectors(seed=1, rows=10):
    return torch.randn(rows, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_pair_circle_loss_equals_a_loop():
    x, m, g = vectors(), 0.25, 8.0
    rows = x.tolist()
    terms = []
    for a, positives, negatives in pairs(LABELS):
        s_p = [cosine(rows[a], rows[b]) for b in positives]
        s_n = [cosine(rows[a], rows[b]) for b in negatives]
        pull = sum(math.exp(-g * max(0.0, 1 + m - s) * (s - (1 - m))) for s in s_p)
        push = sum(math.exp(g * max(0.0, s + m) * (s - m)) for s in s_n)
        terms.append(math.log(1 + pull * push))
    found = of_vectors(PairCircle(m, g, "before", ["v"]), x, LABELS)
    assert found.item() == pytest.approx(sum(terms) / len(terms), rel=1e-9)


def test_pair_cosface_equals_a_loop():
    x, m, g = vectors(), 0.25, 8.0
    rows = x.tolist()
    terms = []
    for a, positives, negatives in pairs(LABELS):
        total = sum(
            math.exp(g * (cosine(rows[a], rows[n]) - cosine(rows[a], rows[p]) + m))
            for p, n in product(positives, negatives)
        )
        terms.append(math.log(1 + total))
    found = of_vectors(PairCosFace(m, g, "before", ["v"]), x, LABELS)
    assert found.item() == pytest.approx(sum(terms) / len(terms), rel=1e-9)


def test_pair_losses_do_not_overflow_at_the_published_scale():
    x = vectors().float().requires_grad_(True)
    for loss in (PairCircle(0.25, 128.0, "before", ["v"]), PairCosFace(0.25, 128.0, "before", ["v"])):
        value = of_vectors(loss, x, LABELS)
        assert value.isfinite() and torch.autograd.grad(value, x)[0].isfinite().all()


@pytest.mark.parametrize("mining", ["hard", "weighted", "all"])
@pytest.mark.parametrize("margin", [0.3, None])
@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_every_form_of_the_triplet_loss_equals_a_loop(mining, margin, distance, reduction):
    x = vectors()
    rows = x.tolist()

    def between(a, b):
        return math.dist(rows[a], rows[b]) if distance == "euclidean" else 1 - cosine(rows[a], rows[b])

    def weighted(values, sign):
        weights = [math.exp(sign * value) for value in values]
        return sum(w * value for w, value in zip(weights, values, strict=True)) / sum(weights)

    gaps = []
    for a, positives, negatives in pairs(LABELS):
        d_p, d_n = [between(a, b) for b in positives], [between(a, b) for b in negatives]
        if mining == "all":
            gaps += [p - n for p, n in product(d_p, d_n)]
        elif mining == "hard":
            gaps.append(max(d_p) - min(d_n))
        else:
            gaps.append(weighted(d_p, 1) - weighted(d_n, -1))
    terms = [math.log1p(math.exp(gap)) if margin is None else max(0.0, gap + margin) for gap in gaps]
    expected = sum(terms) / (len(terms) if reduction == "mean" else 1)
    loss = Triplet(margin, "before", False, ["v"], mining, distance, reduction)
    assert of_vectors(loss, x, LABELS).item() == pytest.approx(expected, rel=1e-9)


def test_centre_loss_of_a_hand_computed_case_and_how_its_centres_move():
    loss = Center(3, ["v"], {"v": 2}, 0.5, "before")
    x = torch.tensor([[2.0, 0.0], [4.0, 0.0], [0.0, 6.0]])
    # from centres at 0: half of (4 + 16 + 36) over 3 images
    assert of_vectors(loss, x, [0, 0, 2]).item() == pytest.approx(56 / 6)
    # class 0 moves 0.5 * (2 + 4) / (1 + 2) = 1, class 2 moves 0.5 * 6 / (1 + 1) = 1.5
    assert loss.centers.tolist() == [[1.0, 0.0], [0.0, 0.0], [0.0, 1.5]]
    # half of (1 + 9 + 20.25) over 3 images
    assert of_vectors(loss.eval(), x, [0, 0, 2]).item() == pytest.approx(30.25 / 6)
    assert loss.centers[0].tolist() == [1.0, 0.0]


def test_centre_loss_leaves_out_images_without_a_class():
    loss = Center(2, ["v"], {"v": 2}, 0.5, "before").eval()
    x = torch.tensor([[2.0, 0.0], [9.0, 9.0]])
    assert of_vectors(loss, x, [0, -1]).item() == pytest.approx(2.0)
    assert of_vectors(loss, x, [-1, -1]).item() == 0


@pytest.mark.parametrize(
    "loss",
    [
        CrossEntropy(0.1, ["v"]),
        CrossEntropy(0.1, ["v"], "all"),
        BinaryCrossEntropy(0.1, ["v"]),
        Focal(0.25, 2.0, ["v"]),
        CosFace(8.0, 0.35, 0.1, ["v"]),
        ArcFace(8.0, 0.5, 0.1, ["v"]),
    ],
    ids=lambda loss: f"{loss.name}-{getattr(loss, 'spread', '')}",
)
def test_gradients_of_losses_over_scores_pass_gradcheck(loss):
    x = (cosines(8) * 0.9).requires_grad_(True)
    assert torch.autograd.gradcheck(lambda rows: of_logits(loss, rows, LABELS[:8]), (x,))


@pytest.mark.parametrize("mining", ["hard", "weighted", "all"])
@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
@pytest.mark.parametrize(("margin", "normalize"), [(None, False), (0.3, False), (0.3, True)])
def test_gradients_of_triplet_losses_pass_gradcheck(mining, distance, margin, normalize):
    loss = Triplet(margin, "before", normalize, ["v"], mining, distance)
    x = vectors().requires_grad_(True)
    assert torch.autograd.gradcheck(lambda rows: of_vectors(loss, rows, LABELS), (x,))


@pytest.mark.parametrize(
    "loss", [PairCosFace(0.25, 4.0, "before", ["v"]), Center(4, ["v"], {"v": 5}, 0.5, "after").eval()]
)
def test_gradients_of_pair_and_centre_losses_pass_gradcheck(loss):
    x = vectors().requires_grad_(True)
    assert torch.autograd.gradcheck(lambda rows: of_vectors(loss, rows, LABELS), (x,))


def frozen_weights(loss, make_scores, x):
    """Compare a gradient with that of the same loss in which some weights are constants."""
    (gradient,) = torch.autograd.grad(loss(x), x)
    (expected,) = torch.autograd.grad(make_scores(x), x)
    torch.testing.assert_close(gradient, expected)


def test_the_smoothing_of_adaptive_cross_entropy_carries_no_gradient():
    x = logits(6).requires_grad_(True)
    labels = torch.tensor([0, 1, 2, 3, 0, 1])
    smoothing = 0.2 * x.detach().softmax(1).gather(1, labels[:, None])
    true = torch.nn.functional.one_hot(labels, 4)

    def with_constants(rows):
        target = (1 - smoothing) * true + smoothing / 3 * (1 - true)
        return -(target * rows.log_softmax(1)).sum(1).mean()

    loss = AdaptiveCrossEntropy(0.2, ["v"])
    frozen_weights(lambda rows: of_logits(loss, rows, labels.tolist()), with_constants, x)


def test_circle_losss_weights_carry_no_gradient():
    x = cosines(6).requires_grad_(True)
    labels = [0, 1, 2, 3, 0, 1]
    m, c = 0.35, x.detach()
    true = torch.nn.functional.one_hot(torch.tensor(labels), 4).bool()
    to_true, to_others = (1 + m - c).clamp(min=0), (c + m).clamp(min=0)

    def with_constants(rows):
        scores = torch.where(true, to_true * (rows - (1 - m)), to_others * (rows - m))
        return torch.nn.functional.cross_entropy(8.0 * scores, torch.tensor(labels))

    frozen_weights(lambda rows: of_logits(CircleSoftmax(8.0, m, 0.0, ["v"]), rows, labels), with_constants, x)


def test_pair_circle_losss_weights_carry_no_gradient():
    x = vectors(rows=4).requires_grad_(True)
    labels = [0, 0, 1, 1]
    m, g = 0.25, 4.0
    s = torch.nn.functional.normalize(x.detach())
    s = s @ s.T

    def with_constants(rows):
        unit = torch.nn.functional.normalize(rows)
        own = unit @ unit.T
        total = 0.0
        for a, positives, negatives in pairs(labels):
            pull = sum(torch.exp(-g * (1 + m - s[a, b]).clamp(min=0) * (own[a, b] - (1 - m))) for b in positives)
            push = sum(torch.exp(g * (s[a, b] + m).clamp(min=0) * (own[a, b] - m)) for b in negatives)
            total = total + torch.log(1 + pull * push)
        return total / 4

    frozen_weights(lambda rows: of_vectors(PairCircle(m, g, "before", ["v"]), rows, labels), with_constants, x)


def test_losses_of_pairs_of_16_bit_embeddings_are_computed_in_float32():
    x = vectors().bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        for loss in (PairCircle(0.25, 128.0, "before", ["v"]), Center(4, ["v"], {"v": 5}, 0.5, "before").eval()):
            value = of_vectors(loss, x, LABELS)
            assert value.dtype == torch.float32
            torch.testing.assert_close(value, of_vectors(loss, x.float(), LABELS))
