from pathlib import Path
from tempfile import TemporaryDirectory

from reidcore.checkpoint import WEIGHTS, save_tensors
from reidcore.networks import RECIPE, build_model
from reidcore.recipe import fill, load_recipe
from reidcore.testing import contract
from reidcore.testing.checks import CLASSES

_FOLDER = TemporaryDirectory()
TEACHER = Path(_FOLDER.name)
LOADED = load_recipe(
    {
        "run": {"name": "teacher"},
        "train": [{"name": "synthetic"}],
        "input": {"height": 48, "width": 24},
        "backbone": {"name": "resnet18", "base": 24, "weights": "none"},
    }
)
(TEACHER / RECIPE).write_text(fill(LOADED), encoding="utf-8")
save_tensors(TEACHER / WEIGHTS, build_model(LOADED.recipe, CLASSES).state_dict(), {"classes": CLASSES})

test_contract = contract(
    "kd",
    options={name: {"teacher": str(TEACHER)} for name in ("kd-logits", "kd-pkt", "kd-relational", "kd-overhaul")},
)
