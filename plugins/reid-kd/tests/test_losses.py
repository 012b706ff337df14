"""The losses in a run: what they do to the teacher, to checkpoints and to each other."""

import json

import pytest
import tomli
import torch
from safetensors.torch import load_file
from torch import nn

from reid_kd.losses import PKT, Logits, Overhaul
from reidcore.api import run
from reidcore.assemble import assemble, read_data
from reidcore.checkpoint import load_state
from reidcore.errors import ContractError, RunError
from reidcore.loop import fit, prepare
from reidcore.recipe import load_recipe
from reidcore.testing import run_cli, tiny_recipe
from reidcore.types import Batch, Output, Step

REID = [{"name": "cross-entropy"}, {"name": "triplet"}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with data, a recipe, and a finished teacher in runs/teacher."""
    folder = tmp_path_factory.mktemp("kd")
    backbone = {"name": "resnet18", "base": 24, "weights": "none"}
    recipe = tiny_recipe(folder, backbone=backbone, input={"height": 48, "width": 24, "workers": 0})
    run(load_recipe(recipe, overrides=["run.name=teacher", "training.epochs=1"]))
    return folder


def student(folder, name, *losses, **tables):
    """Return the recipe of a student that learns from `losses` too, each without its teacher."""
    taught = [{"teacher": str(folder / "runs" / "teacher"), **loss} for loss in losses]
    return load_recipe(tiny_recipe(folder, loss=[*REID, *taught], **tables), overrides=[f"run.name={name}"])


def assembled(loaded):
    run = assemble(loaded, read_data(loaded), loaded.folder, lambda model, epoch: None)
    prepare(run)
    return run


EVERY = [{"name": f"kd-{name}"} for name in ("logits", "pkt", "relational", "overhaul")]


def test_the_teacher_is_the_same_after_training(folder):
    run = assembled(student(folder, "same", *EVERY))
    teachers = {id(term.teacher): term.teacher for term in run.losses.terms[2:]}
    assert len(teachers) == 1
    (teacher,) = teachers.values()
    before = {name: value.clone() for name, value in teacher.model.state_dict().items()}
    assert any("running_mean" in name for name in before)
    weights = {name: value.clone() for name, value in run.model.state_dict().items()}
    connectors = {name: value.clone() for name, value in run.losses.state_dict().items()}
    fit(run)
    assert not any(module.training for module in teacher.model.modules())
    assert all(torch.equal(value, before[name]) for name, value in teacher.model.state_dict().items())
    assert not all(torch.equal(value, weights[name]) for name, value in run.model.state_dict().items())
    assert not any(
        torch.equal(v, connectors[name]) for name, v in run.losses.state_dict().items() if "0.weight" in name
    )


def test_the_teacher_runs_once_a_batch_and_is_not_saved(folder, monkeypatch):
    loaded = student(folder, "once", *EVERY, training={"epochs": 1, "precision": "float32"})
    run = assembled(loaded)
    teacher, calls = run.losses.terms[2].teacher, []
    monkeypatch.setattr(teacher.model, "forward", lambda *a, f=teacher.model.forward: calls.append(a) or f(*a))
    fit(run)
    assert len(calls) == run.step > 0
    assert all(images.shape[2:] == (48, 24) for images, _, _ in calls)  # the student's are 32x16
    assert all(set(cameras.tolist()) <= {1, 2} for _, _, cameras in calls)
    (checkpoint,) = (loaded.folder / "checkpoints").glob("step-*")
    assert {name.split(".")[2] for name in load_state(checkpoint)["losses"]} == {"connectors"}


def test_a_run_saves_the_student_alone_and_resumes_bit_for_bit(folder):
    losses = [*EVERY, {"name": "kd-logits", "teacher": "self", "form": "symmetric"}]
    options = {"training": {"epochs": 2, "precision": "float32", "ema": 0.9}}
    run(student(folder, "whole", *losses, **options))
    whole = load_file(folder / "runs" / "whole" / "model.safetensors")
    plain = load_file(folder / "runs" / "teacher" / "model.safetensors")
    assert whole.keys() == plain.keys()
    loaded = student(folder, "parts", *losses, **options)
    stopped = assembled(loaded)
    (loaded.folder).mkdir(parents=True)

    class Stopping:
        def log(self, event):
            stopped.interrupted |= event["kind"] == "step" and event["step"] == 2

    stopped.loggers = [Stopping()]
    with pytest.raises(RunError, match="stopped at step 2"):
        fit(stopped)
    run(loaded, resume=True)
    found = load_file(loaded.folder / "model.safetensors")
    assert all(torch.equal(found[name], value) for name, value in whole.items())


def test_every_term_is_logged_and_several_teachers_are_several_tables(folder):
    other = str(folder / "runs" / "teacher" / "recipe.toml")
    weights = str(folder / "runs" / "teacher" / "model.safetensors")
    losses = [*EVERY, {"name": "kd-pkt", "teacher": other, "teacher_weights": weights}]
    loaded = student(folder, "logged", *losses, training={"epochs": 1})
    run(loaded)
    events = [json.loads(line) for line in (loaded.folder / "log.jsonl").read_text().splitlines()]
    step = next(event["losses"] for event in events if event["kind"] == "step")
    names = ["kd-logits", "kd-pkt", "kd-distances", "kd-angles", "kd-overhaul", "kd-pkt-2"]
    assert list(step) == ["cross-entropy", "triplet", *names]
    assert step["kd-pkt"] == pytest.approx(step["kd-pkt-2"])


class Fixed:
    """A teacher whose output is given."""

    identities = None

    def __init__(self, output):
        self.given = output

    def output(self, batch, step):
        return self.given


def output(seed, maps=("stage1.preact", "stage2.preact"), size=(4, 2)):
    random = torch.Generator().manual_seed(seed)
    return Output(
        embedding=torch.randn(6, 8, generator=random),
        before={},
        after={},
        logits={"a": torch.randn(6, 5, generator=random), "b": torch.randn(6, 5, generator=random)},
        maps={name: torch.randn(6, 3, *size, generator=random) for name in maps},
    )


BATCH = Batch(torch.zeros(6, 3, 8, 8, dtype=torch.uint8), torch.zeros(6), torch.zeros(6), torch.arange(6))


def test_views_are_averaged_and_the_teachers_only_view_teaches_all():
    from reid_kd import formulas

    mine, theirs = output(0), output(1)
    loss = Logits(Fixed(theirs), ("a", "b"), {"a": "a", "b": "a"}, "l1", 4.0, 2.0)
    expected = sum(formulas.l1(2 * mine.logits[view], 2 * theirs.logits["a"]) for view in "ab") / 2
    assert loss(mine, BATCH, Step(0, 0))["kd-logits"].item() == pytest.approx(expected.item())


def test_overhaul_weighs_later_maps_more_and_resizes_the_teachers():
    from reid_kd import formulas

    mine, theirs = output(0), output(1, size=(8, 4))
    names = list(mine.maps)
    loss = Overhaul(Fixed(theirs), names, names, [(3, 3)] * 2)
    loss.connectors = nn.ModuleList([nn.Identity(), nn.Identity()])
    targets = [nn.functional.interpolate(theirs.maps[name], (4, 2), mode="bilinear") for name in names]
    first, last = (formulas.margin_relu(mine.maps[n], t) for n, t in zip(names, targets, strict=True))
    assert loss(mine, BATCH, Step(0, 0))["kd-overhaul"].item() == pytest.approx((first / 2 + last).item() / 10_000)
    same = Overhaul(Fixed(mine), names, names, [(3, 3)] * 2).eval()
    same.connectors = loss.connectors
    assert same(mine, BATCH, Step(0, 0))["kd-overhaul"].item() == 0


@torch.no_grad()
def test_a_student_that_is_its_teacher_has_no_loss(folder):
    run = assembled(student(folder, "equal", *EVERY, input={"height": 48, "width": 24, "workers": 0}))
    model, losses = run.losses.terms[2].teacher.model, run.losses.terms[2:].eval()
    losses[3].connectors = nn.ModuleList(nn.Identity() for _ in losses[3].connectors)
    batch = next(iter(run.loaders["train"].batches(0)))
    output = model(batch.images, run.losses.maps)
    terms = {name: value for loss in losses for name, value in loss(output, batch, Step(0, 0)).items()}
    assert len(terms) == 5
    assert all(abs(value.item()) < 1e-5 for value in terms.values()), terms


def test_cameras_are_told_where_their_numbers_mean_the_same(folder, tmp_path):
    from reidcore.testing import toy_data

    loss = {"name": "kd-pkt", "teacher": "self"}
    averaged = assembled(student(folder, "average", EVERY[1], loss, training={"epochs": 1, "ema": 0.9}))
    assert averaged.averaged.cameras
    assert averaged.losses.terms[2].teacher.cameras
    other = [{"name": "folder", "root": str(toy_data(tmp_path / "other"))}]
    assert not assembled(student(folder, "elsewhere", EVERY[1], train=other)).losses.terms[2].teacher.cameras


def test_the_moving_average_is_in_the_step_and_has_to_be_there():
    mine = output(0)
    assert PKT(None)(mine, BATCH, Step(0, 0, Fixed(mine)))["kd-pkt"].item() == pytest.approx(0, abs=1e-6)
    with pytest.raises(ContractError, match=r"write ema = 0\.999 in \[training\]"):
        PKT(None)(mine, BATCH, Step(0, 0))


def refused(folder, loss, **tables):
    with pytest.raises((ContractError, RunError)) as error:
        assembled(student(folder, "refused", loss, **tables))
    return str(error.value)


def test_other_classes_are_refused_where_classes_are_compared(folder):
    holdout = {"holdout": 0.34}
    sampler = {"name": "identity-balanced", "identities": 2, "instances": 2}
    message = refused(folder, {"name": "kd-logits"}, evaluation=holdout, sampler=sampler)
    assert "are 4 identities here and 6 there, 4 of them the same. Train both on the same data" in message
    assembled(student(folder, "features", *EVERY[1:], evaluation=holdout, sampler=sampler))


def test_another_order_of_classes_is_refused(folder, tmp_path):
    from safetensors.torch import save_file

    teacher = folder / "runs" / "teacher"
    (tmp_path / "recipe.toml").write_bytes((teacher / "recipe.toml").read_bytes())
    weights = load_file(teacher / "model.safetensors")
    save_file(weights, tmp_path / "model.safetensors", {"classes": "[1, 0, 2, 3, 4, 5]"})
    message = refused(folder, {"name": "kd-logits", "teacher": str(tmp_path)})
    assert "are the same in another order" in message


@pytest.mark.parametrize(
    ("loss", "tables", "expected"),
    [
        ({"name": "kd-pkt", "teacher": "runs/nobody"}, {}, "runs/nobody is not a finished run: it does not exist"),
        ({"name": "kd-pkt", "teacher": "self"}, {}, "moving average of the model; write ema = 0.999"),
        ({"name": "kd-overhaul"}, {"backbone": {"name": "osnet-x0.25", "weights": "none"}}, "name maps"),
        (
            {"name": "kd-overhaul", "maps": ["stage4"], "teacher_maps": ["stage5"]},
            {},
            "kd-overhaul.teacher_maps: there is no map 'stage5'; did you mean 'stage4'?",
        ),
        ({"name": "kd-overhaul", "maps": ["stage9"]}, {}, "kd-overhaul.maps: there is no map 'stage9'; did"),
        (
            {"name": "kd-overhaul", "teacher": "self", "maps": ["stage4"], "teacher_maps": ["stage3"]},
            {"training": {"epochs": 1, "ema": 0.9}},
            'with teacher = "self" both have the same maps',
        ),
        ({"name": "kd-logits", "on": ["x"]}, {}, "there is no view 'x'"),
    ],
)
def test_what_does_not_fit_is_said(folder, loss, tables, expected):
    assert expected in refused(folder, loss, **tables)


def test_other_kinds_of_logits_are_refused(folder):
    losses = [{"name": "cosface"}, {"name": "kd-logits", "teacher": str(folder / "runs" / "teacher")}]
    recipe = tiny_recipe(folder, loss=losses, head={"name": "bnneck", "classifier": "cosine"})
    with pytest.raises(ContractError, match=r"the student's logits are cosine, and those of the teacher .* linear"):
        assembled(load_recipe(recipe))


def test_check_builds_with_a_teacher_that_is_yet_to_be_trained(folder, tmp_path):
    import tomli_w

    table = tomli.loads(tiny_recipe(folder).read_text())
    table["run"]["output"] = str(tmp_path / "runs")
    teacher = {**table, "loss": REID, "backbone": {"name": "resnet18", "base": 24, "weights": "none"}}
    (tmp_path / "teacher.toml").write_text(tomli_w.dumps(teacher))
    losses = [{**loss, "teacher": str(tmp_path / "runs" / "teacher")} for loss in EVERY]
    table = {**table, "run": {**table["run"], "needs": ["teacher.toml"]}, "loss": [*REID, *losses]}
    (tmp_path / "student.toml").write_text(tomli_w.dumps(table))
    file = tmp_path / "student.toml"
    assert run_cli("check", file, "--build") == (0, f"{file}: no mistakes found\n", "")
    assert not (tmp_path / "runs").exists()
    done = run_cli("run", file, "-q")
    assert done.status == 0, done.err
    assert (tmp_path / "runs" / "teacher" / "metrics.json").is_file()
    assert (tmp_path / "runs" / "student" / "metrics.json").is_file()


def test_other_classes_are_found_before_the_first_of_several_seeds_trains(folder):
    taught = [*REID, {"name": "kd-logits", "teacher": str(folder / "runs" / "teacher")}]
    sampler = {"name": "identity-balanced", "identities": 2, "instances": 2}
    recipe = tiny_recipe(folder, loss=taught, evaluation={"holdout": 0.34}, sampler=sampler)
    done = run_cli("run", recipe, "--seeds", "1,2")
    assert done.status == 2
    assert "toy-seed1: loss.2: kd-logits: the classes of the student" in done.err
    assert not (folder / "runs" / "toy-seed1").exists()
