"""The learning rate's course, and the optimizers' groups."""

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from reidcore.builtin.optimizers import SGD, Adam, AdamW, reidcore_optimizers
from reidcore.builtin.schedulers import WarmupCosine
from reidcore.errors import RunError


def build(steps_per_epoch: int = 10, epochs: int = 10, **options: Any) -> Any:
    return WarmupCosine(**options).build(steps_per_epoch, epochs)


def test_warm_up_flat_and_cosine_by_hand() -> None:
    # 101 steps: warm-up over 0..19, flat over 20..59, the cosine from 60 on reaches its end at step 100
    factor = build(1, 101, unit="iterations", warmup=20, flat_until=60, start_factor=0.2, end_factor=0.1)
    by_hand = {
        0: 0.2,  # the start factor
        10: 0.6,  # half way from 0.2 to 1
        19: 0.96,  # 0.2 + 0.8 · 19/20
        20: 1.0,
        59: 1.0,
        60: 1.0,  # cos 0
        80: 0.55,  # cos 90°: half way from 1 to 0.1
        100: 0.1,  # cos 180°
    }
    assert {step: factor(step) for step in by_hand} == pytest.approx(by_hand)
    # a third of the way, cos 60° = 1/2: 0.1 + 0.9 · 3/4
    assert build(1, 61, unit="iterations", warmup=0, flat_until=30, end_factor=0.1)(40) == pytest.approx(0.775)


def test_figure_4_of_the_paper() -> None:
    factor = build(180, 100, unit="iterations", warmup=2000, flat_until=9000)
    lr = {step: 3.5e-4 * factor(step) for step in (0, 2000, 5000, 9000, 17999)}
    assert lr[0] == pytest.approx(3.5e-5)
    assert lr[2000] == lr[5000] == lr[9000] == pytest.approx(3.5e-4)
    assert lr[17999] == pytest.approx(7.7e-7)


def test_the_defaults_are_figure_4_in_shares_of_the_training() -> None:
    factor = build(180, 100)
    # 0.11 of 18000 iterations are 1980
    assert factor(1979) < 1 == factor(1980) == factor(9000) > factor(9010)


@pytest.mark.parametrize(
    ("unit", "warmup", "flat_until"), [("iterations", 20, 50), ("epochs", 2, 5), ("training", 0.2, 0.5)]
)
def test_the_three_units_say_the_same(unit: str, warmup: float, flat_until: float) -> None:
    expected = build(10, 10, unit="iterations", warmup=20, flat_until=50)
    factor = build(10, 10, unit=unit, warmup=warmup, flat_until=flat_until)
    assert [factor(step) for step in range(100)] == [expected(step) for step in range(100)]


def test_without_warm_up_the_first_step_has_the_whole_rate() -> None:
    assert build(warmup=0)(0) == 1


def test_a_warm_up_past_the_flat_part_runs_to_its_end() -> None:
    factor = build(unit="iterations", warmup=40, flat_until=0)
    assert factor(39) < 1 == factor(40) > factor(41)


def test_flat_to_the_end_never_falls() -> None:
    factor = build(warmup=0, flat_until=1.0)
    assert {factor(step) for step in range(100)} == {1.0}


@given(
    total=st.integers(2, 300),
    warmup=st.floats(0, 0.4),
    flat_until=st.floats(0.4, 0.9),
    start=st.floats(0.01, 1),
    end=st.floats(0, 1),
)
def test_the_course_rises_to_1_and_falls_to_the_end_factor(
    total: int, warmup: float, flat_until: float, start: float, end: float
) -> None:
    schedule = build(1, total, warmup=warmup, flat_until=flat_until, start_factor=start, end_factor=end)
    factors = [schedule(step) for step in range(total)]
    top = schedule.warmup
    assert factors[top] == max(factors) == pytest.approx(1)
    assert all(a <= b + 1e-12 for a, b in pairwise(factors[: top + 1]))
    assert all(a >= b - 1e-12 for a, b in pairwise(factors[top:]))
    if schedule.flat_until < total - 1:
        assert factors[-1] == pytest.approx(end, abs=1e-12)
    assert all(math.isfinite(factor) and factor >= 0 for factor in factors)


@pytest.mark.parametrize("options", [{"warmup": 101}, {"warmup": 0, "flat_until": 101}])
def test_a_schedule_longer_than_the_training_is_an_error_that_says_what_to_do(options: dict[str, Any]) -> None:
    with pytest.raises(RunError) as caught:
        build(10, 10, unit="iterations", **options)
    assert str(caught.value) == (
        "scheduler: the cosine begins at iteration 101, but the training has 100; "
        'lower warmup and flat_until, train for more epochs, or write unit = "training"'
    )


CONFIGS = {component.name: component.config for component in reidcore_optimizers()}


def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))


def groups(optimizer: torch.optim.Optimizer, model: nn.Module) -> list[tuple[float, list[str]]]:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return [(g["weight_decay"], [names[id(p)] for p in g["params"]]) for g in optimizer.param_groups]


@pytest.mark.parametrize("name", CONFIGS)
def test_with_decay_norms_there_is_one_group_of_everything(name: str) -> None:
    model = network()
    optimizer = CONFIGS[name](weight_decay=0.3, decay_norms=True).build(list(model.named_parameters()))
    assert groups(optimizer, model) == [(0.3, [name for name, _ in model.named_parameters()])]


@pytest.mark.parametrize("name", CONFIGS)
def test_without_decay_norms_biases_and_norm_layers_are_spared(name: str) -> None:
    model = network()
    optimizer = CONFIGS[name](weight_decay=0.3, decay_norms=False).build(list(model.named_parameters()))
    assert groups(optimizer, model) == [
        (0.3, ["0.weight", "3.weight"]),
        (0.0, ["0.bias", "1.weight", "1.bias", "3.bias"]),
    ]


@pytest.mark.parametrize("name", CONFIGS)
def test_a_model_without_matrices_has_no_empty_group(name: str) -> None:
    norm = nn.BatchNorm1d(3)
    optimizer = CONFIGS[name](decay_norms=False).build(list(norm.named_parameters()))
    assert groups(optimizer, norm) == [(0.0, ["weight", "bias"])]


def test_options_reach_the_optimizer() -> None:
    named = list(network().named_parameters())
    adam, adamw = (config(lr=0.5, betas=(0.8, 0.9)).build(named) for config in (Adam, AdamW))
    sgd = SGD(lr=0.5, momentum=0.7, nesterov=True).build(named)
    assert (type(adam), type(adamw), type(sgd)) == (torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD)
    assert [optimizer.param_groups[0]["lr"] for optimizer in (adam, adamw, sgd)] == [0.5] * 3
    assert adam.param_groups[0]["betas"] == adamw.param_groups[0]["betas"] == (0.8, 0.9)
    assert (sgd.param_groups[0]["momentum"], sgd.param_groups[0]["nesterov"]) == (0.7, True)


def test_a_step_of_sgd_with_weight_decay_by_hand() -> None:
    # gradient 1 and decay 0.1 · 2: 2 - 0.5 · 1.2
    weight = nn.Parameter(torch.tensor([[2.0]]))
    optimizer = SGD(lr=0.5, weight_decay=0.1).build([("weight", weight)])
    weight.sum().backward()
    optimizer.step()
    assert weight.item() == pytest.approx(1.4)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        # the decay goes into the gradient, which Adam divides by itself: the first step is lr
        (Adam, 2 - 0.5),
        # the decay acts on the weight: 2 · (1 - 0.5 · 0.1), and then a step of lr
        (AdamW, 2 * 0.95 - 0.5),
    ],
)
def test_a_first_step_of_adam_with_either_weight_decay_by_hand(config: Any, expected: float) -> None:
    weight = nn.Parameter(torch.tensor([[2.0]]))
    optimizer = config(lr=0.5, weight_decay=0.1).build([("weight", weight)])
    weight.sum().backward()
    optimizer.step()
    assert weight.item() == pytest.approx(expected)


def test_nesterov_without_momentum_is_refused() -> None:
    with pytest.raises(ValueError, match="found nesterov = true and momentum = 0; expected a momentum above 0"):
        SGD(nesterov=True, momentum=0)
