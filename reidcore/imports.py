"""Models of other programs as runs: all of a file's weights become a model's, or nothing does."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from attrs import evolve, frozen
from torch import Tensor

from reidcore import __version__, fastreid, zoo
from reidcore.builtin.modules.osnet import renamed as renamed_osnet
from reidcore.builtin.modules.vit import adapt as adapt_vit
from reidcore.checkpoint import WEIGHTS, save_tensors, write_text
from reidcore.errors import RunError
from reidcore.fastreid_config import read_config, to_recipe
from reidcore.networks import RECIPE, build_model, unweighted
from reidcore.recipe import Loaded, fill, load_recipe
from reidcore.structure import component_of
from reidcore.weights import leave_out, read_checkpoint


@frozen
class Request:
    """What to import: a file, the new run folder, and changes of its recipe, `KEY=VALUE`.

    config: a YAML file that says of a checkpoint of FastReID what weights do not.
    """

    file: Path
    folder: Path
    overrides: Sequence[str] = ()
    plugin_files: Sequence[str | Path] = ()
    config: Path | None = None

    def load(self, tables: Mapping[str, Any]) -> Loaded:
        """Make a recipe of tables. Raises RunError when there is such a run, RecipeError for a mistake in it."""
        if self.folder.exists():
            raise RunError(f"{self.folder} exists; choose another place for the run")
        recipe = {**tables, "run": {"name": self.folder.name}}
        return load_recipe(recipe, overrides=self.overrides, plugin_files=self.plugin_files)

    def write(self, loaded: Loaded, state: dict[str, Tensor], program: str, known: Collection[str] = ()) -> str:
        """Write the run folder of a recipe with the weights of a state dict, which has the model's names; return its
        summary.

        program: whose file it was. known: names of weights whose values the recipe says, when the dict lacks them.
        Raises RunError that lists each weight that is missing, left over or of another shape.
        """
        rows = (state[key] for key in state if key.startswith("heads.") and key.endswith(".classifier.weight"))
        classes = len(next(rows, ()))
        own = build_model(unweighted(loaded.recipe), classes).state_dict()
        for key, value in own.items():
            if key not in state and (key in known or key.endswith("num_batches_tracked")):
                state[key] = value
        wrong = [
            *(f"it lacks {key}" for key in own if key not in state),
            *(f"{key} is left over" for key in state if key not in own),
            *(
                f"{key} is {_shape(state[key])}, not {_shape(own[key])}"
                for key in state
                if key in own and state[key].shape != own[key].shape
            ),
        ]
        network = component_of(loaded.catalog, loaded.recipe.backbone).name
        if wrong:
            raise RunError("\n".join([f"{self.file} does not fit {network} as its names were understood:", *wrong]))
        apart = {key: value.clone() for key, value in state.items()}  # tensors in a file may be one
        save_tensors(self.folder / WEIGHTS, apart, {"classes": classes})
        origin = {"reidcore": __version__, "imported from": f"{program}, {self.file.name}"}
        write_text(self.folder / RECIPE, fill(loaded, origin))
        return f"{self.folder}: {network} {f'with {classes} classes' if classes else 'without a classifier'}"


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "a number"


def import_fastreid(request: Request) -> list[str]:
    """Turn a checkpoint of FastReID into a run folder whose embeddings are its own; return what is worth knowing of it.

    What the weights do not say (the size of images, the kind of pooling without a learnt exponent) comes from its YAML
    configuration, from the name of a published file, or from overrides. Raises RunError for a weight that is missing,
    left over or of another shape, and for what nothing says.
    """
    if str(request.file).startswith(zoo.PREFIX):
        request = evolve(request, file=zoo.find(str(request.file), key="").fetch())
    state, old = fastreid.renamed(read_checkpoint(request.file, "model"))
    tables = fastreid.architecture(state, request.file.name, old)
    if request.config is not None:
        said, _ = to_recipe(read_config(request.config), request.folder.name)
        said["backbone"] = {**tables["backbone"], "last_stride": said["backbone"]["last_stride"]}
        learnt = "aggregator.pool.alpha" in state or "aggregator.reductions.b1.0.weight" in state
        tables = {**said, **({"aggregator": tables["aggregator"]} if learnt else {})}
    _require_said(tables, request.overrides)
    loaded = request.load(tables)
    learnt = getattr(loaded.recipe.aggregator, "learn", True)
    notes = [request.write(loaded, state, "FastReID", () if learnt else ("aggregator.pool.alpha",))]
    if "stem_pool" in tables["backbone"]:
        stem = "with padding, as FastReID did until November 2020" if old else "by sizes rounded up"
        notes.append(
            f"its names of weights are {'old' if old else 'new'}, so its stem pools {stem}; if its figures are below "
            "the published ones, try the other backbone.stem_pool"
        )
    return notes


def import_torchreid(request: Request) -> list[str]:
    """Turn a file of torchreid's OSNet into a run folder whose embeddings are its own; return what is worth knowing.

    Raises RunError for another network, and for a weight that is missing, left over or of another shape.
    """
    state = renamed_osnet(read_checkpoint(request.file, "state_dict"))
    if "conv1.conv.weight" not in state:
        raise RunError(f"{request.file} is of no OSNet, the only network of torchreid's that becomes a run")
    channels = len(state["conv1.conv.weight"])
    if (width := _OSNETS.get(channels)) is None:
        raise RunError(f"its stem has {channels} channels; expected {', '.join(map(str, _OSNETS))}, as OSNet has")
    ibn = "conv1.bn.running_mean" not in state
    ain = ibn and "conv2.0.conv3.bn.weight" not in state
    form: dict[str, Any] = {"name": f"osnet-ain-{width}"} if ain else {"name": f"osnet-{width}", "ibn": ibn}
    reduction = state.get("fc.0.weight")
    tables = {
        **_DATA,
        "input": {"height": 256, "width": 128},
        "backbone": {**form, "weights": "none"},
        "aggregator": {"name": "avg"},
        "head": {"name": "fc", **({"dim": len(reduction)} if reduction is not None else {})},
        # as in torchreid's own configurations
        "evaluation": {"flip": False, "distance": "cosine" if ain else "euclidean"},
    }
    bias = state.pop("classifier.bias", None)  # rows have none here, and no embedding depends on it
    state = {f"{'heads.global' if key.startswith(_HEAD) else 'backbone'}.{key}": value for key, value in state.items()}
    notes = [request.write(request.load(tables), state, "torchreid")]
    if bias is not None:
        notes.append("the bias of its classifier was left out, on which no embedding depends")
    notes.append(
        "torchreid resizes bilinearly, this project bicubically: embeddings of images of another size than the input's "
        "differ a little"
    )
    return notes


_HEAD = ("fc.", "classifier.")
_OSNETS = {64: "x1.0", 48: "x0.75", 32: "x0.5", 16: "x0.25"}
"""Widths by the channels of the stem."""

_DATA: dict[str, Any] = {
    "train": [{"name": "folder", "root": "data"}],
    "test": [{"name": "folder", "root": "data"}],
    "evaluation": {"flip": False},
}
"""The tables of a recipe that no file of weights says anything of."""


def import_torchvision(request: Request) -> list[str]:
    """Turn a file of a torchvision model into a run folder whose embeddings are what its classifier is given; return
    what is worth knowing of it.

    Raises RunError for a network that is not known, and for a weight that is missing, left over or of another shape.
    """
    state = read_checkpoint(request.file, "state_dict")
    patches = state.get("conv_proj.weight")
    if patches is None:
        table = fastreid.backbone({f"backbone.{key}": value for key, value in state.items()}, old=True)
        loaded = request.load(_pooled({**table, "last_stride": 2}))
        state = leave_out("fc.")(state)
    elif (name := _TRANSFORMERS.get(len(patches))) is None:
        known = ", ".join(map(str, _TRANSFORMERS))
        raise RunError(f"its tokens have {len(patches)} channels; expected a vision transformer of {known}")
    else:
        loaded = request.load(_pooled({"name": name, "weights": "none"}))
        size = loaded.recipe.input
        with torch.device("meta"):
            grid = unweighted(loaded.recipe).backbone.build(size.height, size.width).shapes["patches"]
        state = adapt_vit(state, grid.height, grid.width)
    # an ImageNet classifier has no place: its classes are no identities, and no embedding depends on it
    state = {f"backbone.{key}": value for key, value in state.items()}
    return [request.write(loaded, state, "torchvision"), _say_pooled(loaded)]


_TRANSFORMERS = {192: "vit-tiny", 384: "vit-small", 768: "vit-base"}
"""Vision transformers by the channels of their tokens."""


def import_timm(request: Request) -> list[str]:
    """Turn a file of a timm model into a run folder whose embeddings are the means of the model's last map; return what
    is worth knowing of it.

    Raises RunError when the overrides do not say the model, RecipeError without reid-timm, and ReidError for weights
    that do not fit it.
    """
    if not any(override.startswith("backbone.model=") for override in request.overrides):
        raise RunError("a file of timm does not say which model it is of; add --set backbone.model=NAME, timm's name")
    backbone = {"name": "timm", "weights": str(request.file)}
    loaded = request.load({"requires": ["reid-timm>=0.1"], **_pooled(backbone)})
    # timm's own conversion knows what older files call things, and fits positions to the size of the images
    state = build_model(loaded.recipe, 0).state_dict()
    loaded = evolve(loaded, recipe=unweighted(loaded.recipe))
    return [request.write(loaded, state, "timm"), _say_pooled(loaded)]


def _pooled(backbone: Mapping[str, Any]) -> dict[str, Any]:
    """Return the tables of a recipe whose embeddings are the means of a backbone's last map."""
    size = {"height": 224, "width": 224}  # of ImageNet's models
    return {**_DATA, "input": size, "backbone": backbone, "aggregator": {"name": "avg"}, "head": {"name": "linear"}}


def _say_pooled(loaded: Loaded) -> str:
    size = loaded.recipe.input
    return (
        f"its embeddings are the means of its last map for images of {size.height}x{size.width} pixels (input.height, "
        "input.width); a classifier in the file was left out"
    )


def _require_said(tables: Mapping[str, Any], overrides: Sequence[str]) -> None:
    """Raise RunError for what neither weights, nor the file's name, nor the user says."""
    for table, example in (
        ("input", "--set input.height=256 --set input.width=128"),
        ("aggregator", "--set aggregator.name=avg (of BoT), or --set aggregator.name=gem --set aggregator.learn=false"),
    ):
        if table not in tables and not any(override.startswith(f"{table}.") for override in overrides):
            raise RunError(f"the weights do not say [{table}], nor does the file's name; add {example}")
