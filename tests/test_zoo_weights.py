"""Published models of FastReID by name: as a backbone's weights, and as files to import."""

import hashlib
from pathlib import Path

import pytest
import torch
from torch import Tensor

from reidcore import zoo
from reidcore.builtin.backbones import reidcore_backbones
from reidcore.errors import ReidError
from reidcore.testing import run_cli

RESNET18 = next(component.config for component in reidcore_backbones() if component.name == "resnet18")
RELEASE = "https://github.com/JDAI-CV/fast-reid/releases/download/v0.1.1"


@pytest.fixture
def cache(checkpoints: Path) -> Path:
    """The folder in which torch keeps downloaded weights, which is there."""
    checkpoints.mkdir(parents=True)
    return checkpoints


def model(seed: int = 0, **options: object) -> dict[str, Tensor]:
    """Return a state dict with FastReID's first names, of a network that tests can afford."""
    torch.manual_seed(seed)
    network = RESNET18(weights="none", **options).build(64, 32)
    state = {f"backbone.{key}": value for key, value in network.state_dict().items()}
    neck = dict.fromkeys(("weight", "bias", "running_mean", "running_var"), torch.ones(512))  # tensors may be one
    return {**state, **{f"heads.bnneck.{key}": value for key, value in neck.items()}} | {
        "heads.classifier.weight": torch.ones(5, 512)
    }


def put(folder: Path, state: dict[str, Tensor], name: str = "market_sbs_R50") -> str:
    """Save a checkpoint as a published file, and return its hash."""
    torch.save({"model": state, "epoch": 59}, folder / f"{name}.pth")
    return hashlib.sha256((folder / f"{name}.pth").read_bytes()).hexdigest()


def message(weights: str, **options: object) -> str:
    with pytest.raises(ReidError) as caught:
        RESNET18(weights=weights, **options).build(64, 32)
    return str(caught.value)


def test_a_backbone_starts_from_that_of_a_published_model(cache: Path) -> None:
    options = {"ibn": "a", "non_local": (0, 1, 0, 0), "non_local_channels": 1}
    state = model(**options)
    put(cache, state)
    network = RESNET18(weights="zoo:market_sbs_R50", **options).build(64, 32)
    for key, value in network.state_dict().items():
        assert torch.equal(value, state[f"backbone.{key}"]), key


def test_a_network_of_fewer_stages_takes_what_it_has(cache: Path) -> None:
    state = model()
    put(cache, state)
    network = RESNET18(weights="zoo:market_sbs_R50", stages=3).build(64, 32)
    assert torch.equal(network.layer3[1].conv2.weight, state["backbone.layer3.1.conv2.weight"])


def test_a_model_of_another_form_says_which_it_is_of(cache: Path) -> None:
    put(cache, model(non_local=(0, 1, 0, 0), non_local_channels=1))
    found = message("zoo:market_sbs_R50")
    assert "market_sbs_R50.pth does not fit resnet18: it has NL_2.0.g.weight, has NL_2.0.g.bias, " in found
    assert found.endswith(
        ' more; it is of the backbone name = "resnet18", stem_pool = "pad1", non_local = [0, 1, 0, 0], '
        "non_local_channels = 1"
    )
    put(cache, model(), "duke_sbs_R50")
    assert "it lacks NL_3.0.g.weight, " in message("zoo:duke_sbs_R50", non_local=(0, 0, 1, 0))


def test_the_first_use_writes_the_hash_and_the_next_ones_hold_the_file_to_it(cache: Path) -> None:
    first = put(cache, model())
    RESNET18(weights="zoo:market_sbs_R50").build(64, 32)
    assert (cache / "market_sbs_R50.pth.sha256").read_text() == f"{first}\n"
    RESNET18(weights="zoo:market_sbs_R50").build(64, 32)
    other = put(cache, model(seed=1))
    assert message("zoo:market_sbs_R50") == (
        f"backbone.weights: {cache / 'market_sbs_R50.pth'} is not the file that market_sbs_R50.pth.sha256 was "
        f"written for, whose SHA-256 begins with {first[:16]}: its own begins with {other[:16]}; put the right one "
        "there, or delete it to have it fetched"
    )
    assert (cache / "market_sbs_R50.pth.sha256").read_text() == f"{first}\n"


def test_a_recipe_can_say_which_file_it_means(cache: Path) -> None:
    digest = put(cache, model())
    RESNET18(weights=f"zoo:market_sbs_R50@{digest[:8]}").build(64, 32)
    RESNET18(weights=f"zoo:market_sbs_R50@{digest}").build(64, 32)
    other = "0" * 8 if digest[0] != "0" else "1" * 8
    assert (
        f"is not the file that was asked for, whose SHA-256 begins with {other}: its own begins with {digest[:8]};"
        in message(f"zoo:market_sbs_R50@{other}")
    )


@pytest.mark.parametrize("sha256", ["", "123", "0123456g", "0" * 65])
def test_what_is_no_hash_is_refused(sha256: str, cache: Path) -> None:
    assert message(f"zoo:market_sbs_R50@{sha256}") == (
        f"backbone.weights: found '@{sha256}' behind market_sbs_R50; expected 8 or more digits of its SHA-256, 0-9 and "
        "a-f"
    )


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_an_unknown_name_offers_the_nearest(device: str, cache: Path) -> None:
    with torch.device(device):
        assert message("zoo:market-sbs-R50") == (
            "backbone.weights: no published model is called 'market-sbs-R50'; did you mean 'market_sbs_R50'?"
        )


def test_without_a_network_the_file_and_the_folder_are_named(cache: Path) -> None:
    assert message("zoo:veri_sbs_R50-ibn") == (
        f"backbone.weights: cannot fetch {RELEASE}/veri_sbs_R50-ibn.pth (<urlopen error no route to host>); put the "
        f'file veri_sbs_R50-ibn.pth into {cache}, or write weights = "none" to start from random weights'
    )
    assert list(cache.iterdir()) == []


def test_a_file_is_fetched_by_its_address_and_the_hash_that_is_known(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setattr(
        torch.hub,
        "download_url_to_file",
        lambda url, dst, hash_prefix=None: asked.append((url, hash_prefix)) or put(cache, model()),
    )
    RESNET18(weights="zoo:market_sbs_R50").build(64, 32)
    first = (cache / "market_sbs_R50.pth.sha256").read_text().strip()
    (cache / "market_sbs_R50.pth").unlink()
    RESNET18(weights="zoo:market_sbs_R50").build(64, 32)
    assert asked == [(f"{RELEASE}/market_sbs_R50.pth", None), (f"{RELEASE}/market_sbs_R50.pth", first)]


def test_nothing_is_fetched_on_the_meta_device(cache: Path) -> None:
    with torch.device("meta"):
        RESNET18(weights="zoo:market_sbs_R50").build(64, 32)
    assert list(cache.iterdir()) == []


def test_a_damaged_file_is_named(cache: Path) -> None:
    (cache / "market_sbs_R50.pth").write_bytes(b"<html>")
    assert f"cannot read {cache / 'market_sbs_R50.pth'}, which is damaged" in message("zoo:market_sbs_R50")


def test_a_published_model_is_imported_by_its_name(cache: Path, tmp_path: Path) -> None:
    digest = put(cache, model(), "market_bot_R50")
    run = tmp_path / "run"
    command = ("--from", "fastreid", "-o", run, "--set", "input.height=64")
    done = run_cli("import", f"zoo:market_bot_R50@{digest[:8]}", *command)
    assert (done.status, done.err) == (0, "")
    text = (run / "recipe.toml").read_text()
    assert '"imported from" = "FastReID, market_bot_R50.pth"' in text
    assert 'name = "core:market1501"' in text and "width = 128" in text  # as a file of this name says


def test_an_import_without_a_network_says_what_to_put_where(cache: Path, tmp_path: Path) -> None:
    command = ("--from", "fastreid", "-o", tmp_path / "run")
    done = run_cli("import", "zoo:duke_agw_S50", *command)
    assert done.status == 2 and done.err.replace("\n", " ").endswith(
        f"cannot fetch {RELEASE}/duke_agw_S50.pth (<urlopen error no route to host>); put the file duke_agw_S50.pth "
        f"into {cache} "
    )
    done = run_cli("import", "zoo:duke_agw_S5", *command)
    assert done.status == 2 and "no published model is called 'duke_agw_S5'; did you mean 'duke_agw_S50'?" in done.err


def test_there_are_a_name_a_row_of_the_model_zoo() -> None:
    rows = {f"{d}_{m}_{n}" for d in ("market", "duke", "msmt") for m in ("bot", "agw", "sbs") for n in NETWORKS}
    rows |= {f"{d}_mgn_R50-ibn" for d in ("market", "duke", "msmt")}
    rows |= {"veri_sbs_R50-ibn", "vehicleid_bot_R50-ibn", "veriwild_bot_R50-ibn"}
    assert sorted(zoo.NAMES) == sorted(rows)


NETWORKS = ("R50", "R50-ibn", "S50", "R101-ibn")
