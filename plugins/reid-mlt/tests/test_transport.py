"""Transport against linear programming, a slow iteration, and what must hold of any plan."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from reid_mlt.transport import sinkhorn
from reidcore.errors import ReidError


def problem(count, classes, seed, spread=1.0):
    """Return random scores of images in classes, and a marginal."""
    random = np.random.default_rng(seed)
    marginal = random.random(classes) + 0.1
    scores = random.uniform(-spread, spread, (count, classes))
    return torch.from_numpy(scores), torch.from_numpy(marginal / marginal.sum())


def slow(scores, marginal, sharpness, rounds):
    """Return the plan by Sinkhorn's iteration in logarithms, an element at a time."""
    count, classes = scores.shape
    f, g = [0.0] * count, [0.0] * classes
    for _ in range(rounds):
        for k in range(classes):
            total = math.fsum(math.exp(sharpness * float(scores[i, k]) + f[i]) for i in range(count))
            g[k] = math.log(float(marginal[k])) - math.log(total)
        for i in range(count):
            total = math.fsum(math.exp(sharpness * float(scores[i, k]) + g[k]) for k in range(classes))
            f[i] = -math.log(count) - math.log(total)
    return [
        [count * math.exp(sharpness * float(scores[i, k]) + f[i] + g[k]) for k in range(classes)] for i in range(count)
    ]


@settings(deadline=None, max_examples=60)
@given(
    count=st.integers(1, 12),
    classes=st.integers(1, 6),
    seed=st.integers(0, 10**6),
    sharpness=st.floats(0.01, 100),
)
def test_a_plan_has_its_marginals_and_the_form_of_the_optimum(count, classes, seed, sharpness):
    scores, marginal = problem(count, classes, seed)
    plan = sinkhorn(scores, marginal, sharpness=sharpness, tolerance=1e-7, iterations=200_000)
    assert plan.error <= 1e-7
    torch.testing.assert_close(plan.shares.sum(1), torch.ones(count, dtype=torch.float64), rtol=0, atol=1e-12)
    torch.testing.assert_close(plan.shares.sum(0) / count, marginal, rtol=1e-6, atol=0)
    # what is left of its logarithm, less sharpness * scores, is something of the row and something of the column
    rest = plan.shares.log() - sharpness * scores
    assert (rest - rest[:, :1] - rest[:1] + rest[:1, :1]).abs().max() < 1e-6 * max(1, sharpness)


def test_it_is_the_slow_iteration():
    for seed, sharpness in ((0, 1.0), (1, 10.0), (2, 25.0)):
        scores, marginal = problem(9, 4, seed)
        found = sinkhorn(scores, marginal, sharpness=sharpness, tolerance=1e-10, iterations=100_000)
        expected = torch.tensor(slow(scores, marginal, sharpness, 3000), dtype=torch.float64)
        torch.testing.assert_close(found.shares, expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("seed", range(8))
def test_without_entropy_it_is_the_linear_program(seed):
    count, classes = (5, 3) if seed % 2 else (4, 2)
    scores, marginal = problem(count, classes, seed)
    rows = np.kron(np.eye(count), np.ones(classes))
    columns = np.kron(np.ones(count), np.eye(classes))
    best = linprog(
        -scores.numpy().ravel(),
        A_eq=np.concatenate([rows, columns]),
        b_eq=np.concatenate([np.full(count, 1 / count), marginal.numpy()]),
    )
    gaps = []
    for sharpness in (10.0, 100.0, 1000.0):
        plan = sinkhorn(scores, marginal, sharpness=sharpness, tolerance=1e-8, iterations=10**6)
        gaps.append(-best.fun - float((plan.shares * scores).sum()) / count)
        assert gaps[-1] < math.log(count * classes) / sharpness + 1e-8  # the most that entropy can cost
    assert gaps[0] > gaps[1] - 1e-9 and gaps[1] > gaps[2] - 1e-9
    assert gaps[2] < 1e-3


def test_without_sharpness_every_image_has_the_marginal():
    scores, marginal = problem(6, 4, 0)
    plan = sinkhorn(scores, marginal, sharpness=1e-6)
    torch.testing.assert_close(plan.shares, marginal.expand(6, 4), rtol=1e-4, atol=0)


def test_by_hand():
    # the columns fit already, since the problem is symmetric: each row is a softmax
    scores = torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    plan = sinkhorn(scores, torch.tensor([0.5, 0.5]), sharpness=2.0)
    better = math.exp(2) / (1 + math.exp(2))
    torch.testing.assert_close(plan.shares, torch.tensor([[better, 1 - better], [1 - better, better]]).double())
    # three images alike: each has the marginal
    alike = sinkhorn(torch.zeros(3, 2), torch.tensor([0.25, 0.75]), sharpness=50.0)
    torch.testing.assert_close(alike.shares, torch.tensor([0.25, 0.75]).expand(3, 2))


def test_classes_of_one_size_divide_images_equally():
    # 12 images that all like class 0 best, some more than others
    like = torch.linspace(0.5, 1.0, 12)
    scores = torch.stack([like, torch.full((12,), 0.1)], 1)
    plan = sinkhorn(scores, torch.tensor([0.5, 0.5]), sharpness=200.0, tolerance=1e-3)
    assert plan.shares.argmax(1).tolist() == [1] * 6 + [0] * 6


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_nothing_overflows_or_vanishes(dtype):
    for seed in range(3):
        scores, marginal = problem(30, 10, seed, spread=5.0)
        plan = sinkhorn(scores.to(dtype), marginal, sharpness=3000.0, tolerance=1e-2, iterations=20_000)
        assert plan.shares.isfinite().all()
        torch.testing.assert_close(plan.shares.sum(1), torch.ones(30, dtype=dtype), rtol=0, atol=1e-4)
        assert plan.error < 0.2


def test_a_class_that_nobody_likes_gets_its_share_too():
    scores = torch.zeros(10, 3)
    scores[:, 2] = -1000.0
    plan = sinkhorn(scores, torch.full((3,), 1 / 3), sharpness=25.0)
    assert plan.error <= 1e-2
    torch.testing.assert_close(plan.shares.sum(0), torch.full((3,), 10 / 3), rtol=2e-2, atol=0)


def test_it_says_how_far_it_came():
    scores, marginal = problem(9, 4, 1)
    plan = sinkhorn(scores, marginal, sharpness=50.0, tolerance=1e-12, iterations=3)
    assert plan.iterations == 3
    columns = plan.shares.sum(0) / 9
    assert plan.error == pytest.approx(float((columns / marginal - 1).abs().max()), rel=1e-6)


def test_what_makes_no_sense_is_refused():
    scores = torch.zeros(3, 2)
    for marginal in ([0.5, 0.4], [1.0, 0.0], [0.3, 0.3, 0.4], [-0.5, 1.5]):
        with pytest.raises(ReidError, match="the marginal has to be 2 numbers above 0 with sum 1"):
            sinkhorn(scores, torch.tensor(marginal))
    scores[1, 1] = torch.nan
    with pytest.raises(ReidError, match="not finite"):
        sinkhorn(scores, torch.tensor([0.5, 0.5]))
