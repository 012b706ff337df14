"""The recipes of FastReID's rows say what was published, after `extends`.

Sources: the reference configurations Base-bagtricks, Base-AGW, Base-SBS, Base-MGN and those of the vehicle sets; the
figures are those of its model zoo, and of Tables 1 and 5 to 7 of the paper.
"""

import re
from importlib.util import find_spec
from pathlib import Path

import pytest
import tomli

from reidcore.recipe import load_recipe

FOLDER = Path(__file__).parent.parent / "examples" / "zoo"
IMAGES = {"market1501": 12936, "dukemtmc": 16522, "msmt17": 30248}

# rank-1, mAP, mINP in percent, in the order of NETWORKS
NETWORKS = ("r50", "r50-ibn", "s50", "r101-ibn")
PEOPLE = {
    ("market1501", "bot"): "94.4/86.1/59.4 94.9/87.6/64.1 95.2/88.7/66.9 95.4/88.9/67.4",
    ("market1501", "agw"): "95.3/88.2/66.3 95.1/88.7/67.1 95.3/89.3/68.5 95.5/89.5/69.5",
    ("market1501", "sbs"): "95.4/88.2/64.8 95.7/89.3/67.5 95.8/89.4/67.6 96.3/90.3/70.0",
    ("dukemtmc", "bot"): "87.2/77.0/42.1 89.3/79.6/45.2 90.0/80.13/45.8 91.2/81.2/47.5",
    ("dukemtmc", "agw"): "89.0/79.9/46.1 90.5/80.8/47.6 90.9/82.4/49.2 91.7/82.3/50.0",
    ("dukemtmc", "sbs"): "90.3/80.3/46.5 90.8/81.2/47.0 91.0/81.4/47.6 91.9/83.6/51.5",
    ("msmt17", "bot"): "74.1/50.2/10.4 77.0/54.4/12.5 80.8/59.9/16.3 81.0/59.4/15.6",
    ("msmt17", "agw"): "78.3/55.6/12.9 81.2/59.7/15.3 82.6/62.6/17.7 82.0/61.4/17.3",
    ("msmt17", "sbs"): "81.8/58.4/13.9 83.9/60.6/15.2 84.1/61.7/15.2 84.8/62.8/16.3",
}
ROWS = {
    (data, method, network): figures
    for (data, method), row in PEOPLE.items()
    for network, figures in zip(NETWORKS, row.split(), strict=True)
} | {
    ("market1501", "mgn", "r50-ibn"): "95.8/89.8/67.7",
    ("dukemtmc", "mgn", "r50-ibn"): "91.1/82.0/46.8",
    ("msmt17", "mgn", "r50-ibn"): "85.1/65.4/18.4",
}

METHODS = {
    "bot": {
        "size": (256, 128),
        "pool": ("Average", None),
        "loss": ("CrossEntropy", "Triplet"),
        "triplet": {"mining": "hard", "soft": False, "margin": 0.3, "feature": "before"},
        "sampler": ("Naive", 16, 4),
        "epochs": 120,
        "freeze": 0,
        "attention": False,
        "every": 30,
    },
    "agw": {
        "size": (256, 128),
        "pool": ("GeneralizedMean", False),
        "loss": ("CrossEntropy", "Triplet"),
        "triplet": {"mining": "weighted", "soft": True, "feature": "before"},
        "sampler": ("Naive", 16, 4),
        "epochs": 120,
        "freeze": 0,
        "attention": True,
        "every": 30,
    },
    "sbs": {
        "size": (384, 128),
        "pool": ("GeneralizedMean", True),
        "loss": ("Circle", "Triplet"),
        "triplet": {"mining": "hard", "soft": True, "feature": "after"},
        "sampler": ("Naive", 4, 16),
        "epochs": 60,
        "freeze": 1000,
        "attention": True,
        "every": 10,
    },
}
METHODS["mgn"] = {**METHODS["sbs"], "pool": ("MGN", None), "attention": False}


def load(name: str):
    file = FOLDER / f"{name}.toml"
    for requirement in tomli.loads(file.read_text()).get("requires", ()):
        package = requirement.partition(">")[0]
        if not find_spec(package.replace("-", "_")):
            pytest.skip(f"{package} is not installed")
    return load_recipe(file).recipe, " ".join(re.sub(r"^# ?", "", line) for line in file.read_text().splitlines())


def test_there_is_a_recipe_for_each_row() -> None:
    names = {"-".join(row) for row in ROWS} | {"veri776-sbs-r50-ibn", "vehicleid-bot-r50-ibn", "veri-wild-bot-r50-ibn"}
    assert {file.stem for file in FOLDER.glob("*.toml")} == names


@pytest.mark.parametrize(("data", "method", "network"), ROWS, ids="-".join)
def test_a_row_says_what_was_published(data: str, method: str, network: str) -> None:
    recipe, text = load(f"{data}-{method}-{network}")
    expected = METHODS[method]
    rank1, mean, minp = ROWS[data, method, network].split("/")
    assert f"rank-1 {rank1}%, mAP {mean}%, mINP {minp}%" in text
    assert recipe.run.name == f"{data}-{method}-{network}"
    sets = [entry.dataset for entry in (*recipe.train, *recipe.test)]
    assert [type(found).__name__.lower() for found in sets] == [data] * 2
    assert (recipe.input.height, recipe.input.width) == expected["size"]

    backbone = recipe.backbone
    name = {"r50": "resnet50", "r50-ibn": "resnet50", "s50": "resnest50", "r101-ibn": "resnet101"}[network]
    assert type(backbone).__name__.lower().replace("_", "") == name
    assert (backbone.last_stride, backbone.weights) == (1, "imagenet")
    assert backbone.ibn == ("a" if network.endswith("ibn") else "none")
    attention = expected["attention"] and network != "s50"  # the reference leaves it out of ResNeSt, silently
    blocks = {"r101-ibn": (0, 2, 9, 0)}.get(network, (0, 2, 3, 0))
    assert tuple(backbone.non_local) == (blocks if attention else (0, 0, 0, 0))
    if attention:
        assert backbone.non_local_channels == 1

    pool, learn = expected["pool"]
    assert type(recipe.aggregator).__name__ == pool
    if learn is not None:
        assert (recipe.aggregator.alpha, recipe.aggregator.learn) == (3.0, learn)
    assert type(recipe.head).__name__ == "BNNeck" and recipe.head.embed == "after"

    classification, triplet = (term.loss for term in recipe.loss)
    assert (type(classification).__name__, type(triplet).__name__) == expected["loss"]
    assert [term.weight for term in recipe.loss] == [1.0, 1.0] and classification.smoothing == 0.1
    if expected["loss"][0] == "Circle":
        assert (classification.scale, classification.margin, recipe.head.classifier) == (64, 0.35, "cosine")
    assert {key: getattr(triplet, key) for key in expected["triplet"]} == expected["triplet"]

    sampler = recipe.sampler
    assert (type(sampler).__name__, sampler.identities, sampler.instances) == expected["sampler"]
    optimizer = recipe.optimizer
    assert (type(optimizer).__name__, optimizer.lr, optimizer.weight_decay) == ("Adam", 3.5e-4, 5e-4)
    assert (recipe.training.epochs, recipe.training.freeze_iterations) == (expected["epochs"], expected["freeze"])
    assert "backbone" in recipe.training.freeze or not expected["freeze"]
    transforms = [type(transform).__name__ for transform in recipe.transform]
    assert transforms == [
        *(["AutoAugment"] if method in ("sbs", "mgn") else []),
        "Resize",
        "PadCrop",
        "Flip",
        "RandomErasing",
    ]
    assert recipe.transform[-2].probability == recipe.transform[-1].probability == 0.5
    assert recipe.transform[-3].padding == 10

    schedule, steps = recipe.scheduler, IMAGES[data] // 64
    assert schedule.unit == "epochs" and schedule.start_factor == 0.1 and schedule.warmup_method == "linear"
    assert schedule.warmup * steps == pytest.approx(2000, abs=25)
    if method in ("sbs", "mgn"):
        assert (schedule.flat_until, optimizer.lr * schedule.end_factor) == (30, pytest.approx(7e-7))
    else:
        assert (tuple(schedule.milestones), schedule.gamma) == ((40, 90), 0.1)


VEHICLES = {
    "veri776-sbs-r50-ibn": ("Circle", "hard", (4, 16), "SGD", 0.01, 60, 3000, 37778 // 64),
    "vehicleid-bot-r50-ibn": ("CrossEntropy", "weighted", (128, 4), "Adam", 3.5e-4, 60, 2000, 113346 // 512),
    "veri-wild-bot-r50-ibn": ("CrossEntropy", "weighted", (128, 4), "Adam", 3.5e-4, 120, 5000, 277797 // 512),
}


@pytest.mark.parametrize("name", VEHICLES)
def test_the_vehicles_are_as_published(name: str) -> None:
    recipe, text = load(name)
    loss, mining, batch, optimizer, lr, epochs, warmup, steps = VEHICLES[name]
    assert (recipe.input.height, recipe.input.width) == (256, 256)
    assert (type(recipe.backbone).__name__, recipe.backbone.ibn) == ("ResNet50", "a")
    assert tuple(recipe.backbone.non_local) == ((0, 2, 3, 0) if name.startswith("veri776") else (0, 0, 0, 0))
    assert recipe.aggregator.learn == name.startswith("veri776")
    assert (type(recipe.loss[0].loss).__name__, recipe.loss[1].loss.mining, recipe.loss[1].loss.soft) == (
        loss,
        mining,
        True,
    )
    assert (recipe.sampler.identities, recipe.sampler.instances) == batch
    assert (type(recipe.optimizer).__name__, recipe.optimizer.lr) == (optimizer, lr)
    assert recipe.training.epochs == epochs and recipe.scheduler.warmup * steps == pytest.approx(warmup, rel=0.01)
    if name.startswith("veri776"):
        assert type(recipe.sampler).__name__ == "IdentityBalanced" and recipe.training.freeze_iterations == 3000
        assert (recipe.scheduler.flat_until, lr * recipe.scheduler.end_factor) == (30, pytest.approx(7.7e-5))
        assert "mAP 81.9%, rank-1 97.0%" in text and "mINP 46.3%" in text
    else:
        milestones = {"vehicleid-bot-r50-ibn": (30, 50), "veri-wild-bot-r50-ibn": (30, 70, 90)}[name]
        assert (type(recipe.sampler).__name__, tuple(recipe.scheduler.milestones)) == ("Naive", milestones)
        assert [(test.label, test.dataset.size) for test in recipe.test] == [
            (s, s) for s in ("small", "medium", "large")
        ]
        figures = {
            "vehicleid-bot-r50-ibn": "rank-1 86.6%, 82.9% and 80.6%, rank-5 97.9%, 96.0% and 93.9%",
            "veri-wild-bot-r50-ibn": "mAP 87.7%, 83.5% and 77.3%, rank-1 96.4%, 95.1% and 92.5%",
        }
        assert figures[name] in text
