"""The learning rate's course, and the optimizers' groups."""

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import tomli
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from reidcore.builtin.optimizers import SGD, Adam, AdamW, Factors, reidcore_optimizers
from reidcore.builtin.schedulers import Constant, MultiStep, OneCycle, Polynomial, WarmupCosine
from reidcore.catalog import Catalog
from reidcore.errors import RecipeError, RunError
from reidcore.kinds import OptimizerConfig
from reidcore.structure import structure


def build(steps_per_epoch: int = 10, epochs: int = 10, **options: Any) -> Any:
    return WarmupCosine(**options).build(steps_per_epoch, epochs)


def torch_rates(scheduler: Any, steps: int, **options: Any) -> list[float]:
    """Return the rates of a scheduler of torch for an optimizer whose rate is 1."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    course = scheduler(optimizer, **options)
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        course.step()
    return rates


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


def test_figure_4_of_the_paper_at_every_iteration() -> None:
    factor = build(180, 100, unit="iterations", warmup=2000, flat_until=9000)
    for step in range(18000):
        if step < 2000:
            expected = 3.5e-5 + (3.5e-4 - 3.5e-5) * step / 2000
        elif step < 9000:
            expected = 3.5e-4
        else:
            angle = math.pi * (step - 9000) / (17999 - 9000)
            expected = 7.7e-7 + (3.5e-4 - 7.7e-7) * (1 + math.cos(angle)) / 2
        assert 3.5e-4 * factor(step) == pytest.approx(expected, rel=1e-9)
    assert 3.5e-4 * factor(17999) == pytest.approx(7.7e-7)


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


@pytest.mark.parametrize(
    ("method", "by_hand"),
    [
        ("linear", {0: 0.01, 10: 0.505, 19: 0.9505}),
        ("exponential", {0: 0.01, 10: 0.1, 15: 0.1 * 10**0.5}),  # half of the way is the square root of the factor
        ("constant", {0: 0.01, 10: 0.01, 19: 0.01}),
    ],
)
def test_the_warm_up_by_hand(method: str, by_hand: dict[int, float]) -> None:
    factor = Constant(unit="iterations", warmup=20, warmup_method=method, start_factor=0.01).build(10, 10)
    assert {step: factor(step) for step in by_hand} == pytest.approx(by_hand)
    assert {factor(step) for step in range(20, 100)} == {1}


@pytest.mark.parametrize("method", ["linear", "exponential", "constant"])
@pytest.mark.parametrize("config", [WarmupCosine, MultiStep, Polynomial])
def test_the_warm_up_is_the_same_in_every_schedule(config: Any, method: str) -> None:
    expected, factor = (each(warmup=0.2, warmup_method=method).build(10, 10) for each in (Constant, config))
    assert [factor(step) for step in range(21)] == [expected(step) for step in range(21)]


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
    start=st.floats(0.01, 1),
    end=st.floats(0, 1),
    method=st.sampled_from(["linear", "exponential", "constant"]),
    config=st.sampled_from([WarmupCosine, Polynomial]),
)
def test_the_course_rises_to_1_and_falls_to_the_end_factor(
    total: int, warmup: float, start: float, end: float, method: str, config: Any
) -> None:
    options = {"warmup": warmup, "warmup_method": method, "start_factor": start, "end_factor": end}
    schedule = config(**options).build(1, total)
    factors = [schedule(step) for step in range(total)]
    top = round(warmup * total)
    assert factors[top] == max(factors) == 1
    assert all(a <= b + 1e-12 for a, b in pairwise(factors[: top + 1]))
    assert all(a >= b - 1e-12 for a, b in pairwise(factors[top:]))
    if round(0.5 * total) < total - 1:
        assert factors[-1] == pytest.approx(end, abs=1e-12)
    assert all(math.isfinite(factor) and factor >= 0 for factor in factors)


@pytest.mark.parametrize("warmup", [0, 10, 25])
def test_the_rate_falls_at_the_milestones_as_written_whatever_the_warm_up(warmup: int) -> None:
    factor = MultiStep(unit="epochs", milestones=(40, 90), warmup=warmup).build(7, 120)
    falls = [step for step in range(1, 840) if factor(step) < factor(step - 1)]
    assert falls == [40 * 7, 90 * 7]
    assert [factor(step) for step in (40 * 7, 90 * 7)] == pytest.approx([0.1, 0.01])


def test_multistep_is_that_of_torch() -> None:
    factor = MultiStep(unit="epochs", milestones=(3, 5, 8), gamma=0.3, warmup=0).build(1, 10)
    expected = torch_rates(torch.optim.lr_scheduler.MultiStepLR, 10, milestones=[3, 5, 8], gamma=0.3)
    assert [factor(step) for step in range(10)] == pytest.approx(expected)


def test_a_milestone_within_the_warm_up_counts_too() -> None:
    factor = MultiStep(unit="iterations", milestones=(10,), warmup=20, start_factor=0.2).build(10, 10)
    # 0.2 + 0.8 · 9/20, and from the milestone on a tenth of 0.2 + 0.8 · 10/20
    assert [factor(step) for step in (9, 10, 20)] == pytest.approx([0.56, 0.06, 0.1])


def test_polynomial_by_hand() -> None:
    # 20 steps of warm-up; the last step, 100, is 80 further
    factor = Polynomial(unit="iterations", warmup=20, power=2, end_factor=0.2).build(1, 101)
    by_hand = {20: 1.0, 40: 0.2 + 0.8 * 0.75**2, 60: 0.2 + 0.8 * 0.25, 100: 0.2}
    assert {step: factor(step) for step in by_hand} == pytest.approx(by_hand)


def test_polynomial_is_that_of_torch() -> None:
    factor = Polynomial(warmup=0).build(10, 10)
    expected = torch_rates(torch.optim.lr_scheduler.PolynomialLR, 100, total_iters=99, power=0.9)
    assert [factor(step) for step in range(100)] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("total", [1, 7, 100])
@pytest.mark.parametrize(
    "options", [{}, {"pct_start": 0.0}, {"pct_start": 0.55, "div_factor": 4.0, "final_div_factor": 10.0}]
)
def test_one_cycle_is_that_of_torch(total: int, options: dict[str, float]) -> None:
    factor = OneCycle(**options).build(1, total)
    expected = torch_rates(torch.optim.lr_scheduler.OneCycleLR, total, max_lr=1.0, total_steps=total, **options)
    assert [factor(step) for step in range(total)] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (Constant(unit="iterations", warmup=101), "the warm-up ends at iteration 101, {}; lower warmup, {}"),
        (
            WarmupCosine(unit="epochs", warmup=2, flat_until=11),
            "the cosine begins at iteration 110, {}; lower flat_until, {}",
        ),
        (
            MultiStep(unit="epochs", warmup=2, milestones=(4, 10.2)),
            "the last milestone is at iteration 102, {}; lower milestones, {}",
        ),
    ],
)
def test_a_schedule_longer_than_the_training_is_an_error_that_says_what_to_do(config: Any, message: str) -> None:
    with pytest.raises(RunError) as caught:
        config.build(10, 10)
    expected = message.format("but the training has 100", 'train for more epochs, or write unit = "training"')
    assert str(caught.value) == f"scheduler: {expected}"
    config.build(10, 0)  # no training at all, to evaluate weights as they are


@pytest.mark.parametrize(
    ("config", "options", "message"),
    [
        (
            WarmupCosine,
            {"warmup": 2000},
            "found warmup = 2000 as a share of the training; expected at most 1, or",
        ),
        (MultiStep, {"milestones": [40, 90]}, "found milestones = 90 as a share of the training; expected at most 1"),
        (MultiStep, {"milestones": [0.9, 0.4]}, "found milestones = [0.9, 0.4]; expected one or several, rising"),
        (MultiStep, {"milestones": []}, "found milestones = []; expected one or several, rising"),
    ],
)
def test_times_that_cannot_be_meant_are_refused(config: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        structure(options, config, Catalog.of(), where="scheduler")
    assert str(caught.value).startswith(f"scheduler: {message}")


CONFIGS = {component.name: component.config for component in reidcore_optimizers()}
CATALOG = Catalog.of()


def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))


def groups(optimizer: torch.optim.Optimizer, model: nn.Module, option: str) -> dict[str, float]:
    """Return each parameter's value of an option of its group."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {names[id(p)]: group[option] for group in optimizer.param_groups for p in group["params"]}


class Part(nn.Module):
    """A model in miniature: one parameter of each kind."""

    def __init__(self) -> None:
        super().__init__()
        layers = {"conv": nn.Conv2d(3, 4, 3), "norm": nn.BatchNorm2d(4), "attention": nn.MultiheadAttention(4, 1)}
        self.backbone = nn.ModuleDict(layers)
        self.aggregator = nn.ModuleDict(
            {"pool": nn.ParameterDict({"alpha": torch.ones(1)}), "tails": nn.ModuleDict({"b1": nn.Linear(2, 2)})}
        )
        self.heads = nn.ModuleDict({"global": nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 2))})
        self.terms = nn.ModuleList([nn.Linear(2, 2)])  # of a loss


@pytest.mark.parametrize("name", CONFIGS)
def test_factors_by_part_multiply(name: str) -> None:
    model = Part()
    factors = {"backbone": 2.0, "head": 3.0, "norm": 5.0, "bias": 7.0}
    options = {"lr": 1.0, "lr_factors": factors, "weight_decay": 0.1, "decay_factors": {**factors, "norm": 0}}
    optimizer = structure({"name": name, **options}, OptimizerConfig, CATALOG).build(list(model.named_parameters()))
    expected = {
        "backbone.conv.weight": 2,
        "backbone.conv.bias": 2 * 7,
        "backbone.norm.weight": 2 * 5,
        "backbone.norm.bias": 2 * 5,
        "backbone.attention.in_proj_weight": 2,
        "backbone.attention.in_proj_bias": 2 * 7,
        "backbone.attention.out_proj.weight": 2,
        "backbone.attention.out_proj.bias": 2 * 7,
        "aggregator.pool.alpha": 5,
        "aggregator.tails.b1.weight": 2,
        "aggregator.tails.b1.bias": 2 * 7,
        "heads.global.0.weight": 3 * 5,
        "heads.global.0.bias": 3 * 5,
        "heads.global.1.weight": 3,
        "heads.global.1.bias": 3 * 7,
        "terms.0.weight": 1,
        "terms.0.bias": 7,
    }
    decays = {key: 0.0 if value % 5 == 0 else 0.1 * value for key, value in expected.items()}
    assert groups(optimizer, model, "lr") == expected
    assert groups(optimizer, model, "weight_decay") == pytest.approx(decays)


@pytest.mark.parametrize(("name", "spared"), [("adam", 5e-4), ("sgd", 5e-4), ("adamw", 0.0)])
def test_adamw_alone_spares_norms_and_biases_by_default(name: str, spared: float) -> None:
    model = Part()
    decays = groups(CONFIGS[name]().build(list(model.named_parameters())), model, "weight_decay")
    assert decays["heads.global.1.weight"] > 0
    vectors = {key for key, parameter in model.named_parameters() if parameter.ndim == 1}
    assert {decays[key] for key in vectors} == {spared}


def test_a_factor_for_another_part_does_not_bring_the_decay_of_norms_back() -> None:
    table = {"name": "adamw", "decay_factors": {"head": 0.5}}
    model = Part()
    optimizer = structure(table, OptimizerConfig, CATALOG).build(list(model.named_parameters()))
    decays = groups(optimizer, model, "weight_decay")
    assert (decays["backbone.norm.weight"], decays["heads.global.1.weight"]) == (0, 0.025)


def test_the_groups_do_not_depend_on_the_factors() -> None:
    """A run is resumed with the factors of its recipe, which may have changed."""
    named = list(Part().named_parameters())
    plain, factored = (SGD(lr_factors=Factors(backbone=b)).build(named) for b in (1.0, 0.1))
    assert [g["params"] for g in plain.param_groups] == [g["params"] for g in factored.param_groups]


@pytest.mark.parametrize(
    ("factors", "message"),
    [
        ({"biass": 2.0}, "optimizer.lr_factors.biass: unknown key; did you mean 'bias'?"),
        ({"bias": -1.0}, "optimizer.lr_factors.bias: found -1.0; expected at least 0"),
    ],
)
def test_factors_are_checked(factors: dict[str, float], message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        structure({"name": "adam", "lr_factors": factors}, OptimizerConfig, CATALOG, where="optimizer")
    assert str(caught.value) == message


def test_a_filled_recipe_and_the_list_of_components_show_the_factors(reidcore: Any, toy_recipe: Path) -> None:
    _, filled, _ = reidcore("fill", toy_recipe, "--set", "optimizer.lr_factors.bias=2")
    factors = {"backbone": 1.0, "head": 1.0, "norm": 1.0, "bias": 2.0}
    assert tomli.loads(filled)["optimizer"]["lr_factors"] == factors
    _, listed, _ = reidcore("components", "optimizer", "adamw")
    example = tomli.loads(listed[listed.index("[optimizer]") :])["optimizer"]
    assert example["decay_factors"] == {"backbone": 1.0, "head": 1.0, "norm": 0.0, "bias": 0.0}
    assert reidcore("components", "optimizer", "--json")[0] == 0


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
