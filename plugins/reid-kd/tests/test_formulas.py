import math

import numpy as np
import pytest
import torch

from reid_kd import formulas


def rand(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


STUDENT, TEACHER = rand(6, 5), rand(6, 5, seed=1)
WIDE = rand(6, 9, seed=2)


def softmax(row, temperature):
    powers = [math.exp(x / temperature) for x in row]
    return [power / sum(powers) for power in powers]


def divergence(p, q):
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def huber(x):
    return x * x / 2 if abs(x) < 1 else abs(x) - 0.5


def test_l1_is_the_sum_over_classes():
    expected = np.mean(
        [sum(abs(s - t) for s, t in zip(*rows, strict=True)) for rows in zip(STUDENT, TEACHER, strict=True)]
    )
    assert formulas.l1(STUDENT, TEACHER).item() == pytest.approx(expected, rel=1e-12)
    assert formulas.l1(torch.tensor([[1.0, 2.0, 4.0]]), torch.tensor([[1.0, 0.0, 5.0]])).item() == 3


@pytest.mark.parametrize("temperature", [1.0, 4.0, 16.0])
def test_divergences_equal_loops(temperature):
    def kl(of, to):
        rows = zip(of.tolist(), to.tolist(), strict=True)
        found = [divergence(softmax(a, temperature), softmax(b, temperature)) for a, b in rows]
        return np.mean(found) * temperature**2

    assert formulas.kl(STUDENT, TEACHER, temperature).item() == pytest.approx(kl(TEACHER, STUDENT), rel=1e-9)
    both = (kl(TEACHER, STUDENT) + kl(STUDENT, TEACHER)) / 2
    assert formulas.symmetric(STUDENT, TEACHER, temperature).item() == pytest.approx(both, rel=1e-9)


def conditional(x):
    """p_j|i of equation 9, with the kernel (1 + cos) / 2."""
    count = len(x)
    found = np.zeros((count, count))
    for i in range(count):
        for j in range(count):
            if i != j:
                found[i, j] = (1 + x[i] @ x[j] / np.linalg.norm(x[i]) / np.linalg.norm(x[j])) / 2
        found[i] /= found[i].sum()
    return found


@pytest.mark.parametrize("teacher", [TEACHER, WIDE])
def test_pkt_equals_equation_9(teacher):
    p, q = conditional(teacher.numpy()), conditional(STUDENT.numpy())
    expected = sum(p[i, j] * math.log(p[i, j] / q[i, j]) for i in range(6) for j in range(6) if i != j)
    assert formulas.pkt(STUDENT, teacher).item() == pytest.approx(expected, rel=1e-9)


def test_pkt_by_hand():
    # to the first image the teacher's others are alike by 1 and 0 (which counts as nearly 0), the student's by 1/2
    teacher = torch.tensor([[1.0, 0.0], [1.0, 0.0], [-1.0, 0.0]], dtype=torch.float64)
    student = torch.tensor([[0.0, 0.0, 1.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]], dtype=torch.float64)
    # rows: (1, 0) against (1/2, 1/2); the same; (1/2, 1/2) against itself
    assert formulas.pkt(student, teacher).item() == pytest.approx(2 * math.log(2), abs=1e-4)


def test_pkt_is_finite_for_opposite_directions():
    x = torch.tensor([[1.0, 0.0], [-1.0, 0.0]], requires_grad=True)
    found = formulas.pkt(x, torch.tensor([[1.0, 1.0], [1.0, -1.0]]))
    found.backward()
    assert found.isfinite()
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("teacher", [TEACHER, WIDE])
def test_relations_equal_loops(teacher):
    def distances(x):
        found = {(i, j): np.linalg.norm(x[i] - x[j]) for i in range(6) for j in range(6) if i != j}
        mean = np.mean(list(found.values()))
        return {pair: value / mean for pair, value in found.items()}

    def angles(x):
        def unit(v):
            return v / np.linalg.norm(v)

        return {
            (i, j, k): unit(x[i] - x[j]) @ unit(x[k] - x[j])
            for i in range(6)
            for j in range(6)
            for k in range(6)
            if len({i, j, k}) == 3
        }

    for relation, formula in ((distances, formulas.distances), (angles, formulas.angles)):
        ours, theirs = relation(STUDENT.numpy()), relation(teacher.numpy())
        expected = np.mean([huber(ours[key] - theirs[key]) for key in ours])
        assert formula(STUDENT, teacher).item() == pytest.approx(expected, rel=1e-9)


def test_margin_relu_equals_loops():
    student, teacher = rand(3, 4, 2, 5), rand(3, 4, 2, 5, seed=1)
    teacher[:, 2] = teacher[:, 2].abs()  # a channel without negative values
    expected = 0.0
    for channel in range(4):
        values = teacher[:, channel].flatten().tolist()
        negative = [value for value in values if value < 0]
        margin = sum(negative) / len(negative) if negative else 0.0
        for s, t in zip(student[:, channel].flatten().tolist(), values, strict=True):
            target = max(t, margin)
            if s > target or target > 0:
                expected += (s - target) ** 2
    assert formulas.margin_relu(student, teacher).item() == pytest.approx(expected / 3, rel=1e-12)


def test_margin_relu_by_hand():
    # margin -2: targets 1, -1, -2, -2; the student is off by 1, low enough, off by 1, low enough
    teacher = torch.tensor([1.0, -1.0, -3.0, -2.0]).view(1, 1, 1, 4)
    student = torch.tensor([0.0, -5.0, -1.0, -9.0]).view(1, 1, 1, 4)
    assert formulas.margin_relu(student, teacher).item() == 2


ALL = {
    "l1": formulas.l1,
    "kl": lambda s, t: formulas.kl(s, t, 4.0),
    "symmetric": lambda s, t: formulas.symmetric(s, t, 4.0),
    "pkt": formulas.pkt,
    "distances": formulas.distances,
    "angles": formulas.angles,
    "margin_relu": lambda s, t: formulas.margin_relu(s.view(3, 2, 1, 5), t.view(3, 2, 1, 5)),
}


@pytest.mark.parametrize("name", ALL)
def test_the_teacher_itself_is_no_loss_and_gradients_are_right(name):
    assert ALL[name](TEACHER, TEACHER).item() == pytest.approx(0, abs=1e-12)
    assert ALL[name](STUDENT, TEACHER).item() > 0.01
    assert torch.autograd.gradcheck(lambda s: ALL[name](s, TEACHER), STUDENT.clone().requires_grad_())


@pytest.mark.parametrize("name", ["pkt", "distances", "angles"])
@pytest.mark.parametrize("count", [1, 2])
def test_batches_too_small_for_relations_are_finite(name, count):
    student = STUDENT[:count].clone().requires_grad_()
    found = ALL[name](student, TEACHER[:count])
    found.backward()
    assert found.isfinite()
    assert student.grad.isfinite().all()
    copies = torch.ones(4, 3, requires_grad=True)  # a student that has not begun
    found = ALL[name](copies, rand(4, 3).float())
    found.backward()
    assert found.isfinite()
    assert copies.grad.isfinite().all()
