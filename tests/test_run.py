"""Whole runs through the command line and through Python: what is written, what is said, what is refused."""

import json
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import tomli
from PIL import Image

import reidcore as package

NAMES = {"rank1", "rank5", "rank10", "mAP", "mINP"}


def test_a_run_writes_its_folder_and_prints_a_table(toy_recipe, reidcore):
    status, out, err = reidcore("run", toy_recipe, "--set", "evaluation.before=true")
    folder = toy_recipe.parent / "runs" / "toy"
    assert status == 0, err
    assert "folder, before training" in out
    assert "folder, after training" in out
    assert str(folder) in out
    assert {path.name for path in folder.iterdir()} == {
        "recipe.toml",
        "metrics.json",
        "metrics-before.json",
        "log.jsonl",
        "model.safetensors",
        "evaluation.safetensors",
        "features",
        "checkpoints",
    }
    metrics = json.loads((folder / "metrics.json").read_text())
    assert set(metrics) == {"folder"}
    assert set(metrics["folder"]) == NAMES
    assert all(0 <= value <= 1 for value in metrics["folder"].values())
    kinds = [json.loads(line)["kind"] for line in (folder / "log.jsonl").read_text().splitlines()]
    assert kinds.count("epoch") == 2
    assert kinds.count("evaluation") == 2
    assert "36 images of 6 identities on cpu" in err
    assert "(6 of 6 queries)" in err
    assert out.count("6 of 6") == 2


def test_a_saved_recipe_reproduces_the_run(toy_recipe, reidcore):
    runs = toy_recipe.parent / "runs"
    assert reidcore("run", toy_recipe, "-q")[0] == 0
    assert "versions" in tomli.loads((runs / "toy" / "recipe.toml").read_text())
    assert reidcore("run", runs / "toy" / "recipe.toml", "-q", "--set", "run.name=again")[0] == 0
    first, again = ((runs / name / "model.safetensors").read_bytes() for name in ("toy", "again"))
    assert first == again


def test_a_run_folder_that_exists_is_not_overwritten(toy_recipe, reidcore):
    assert reidcore("run", toy_recipe, "-q", "--set", "training.epochs=0")[0] == 0
    status, _, err = reidcore("run", toy_recipe)
    assert status == 2
    assert err.startswith(f"the run folder {toy_recipe.parent / 'runs' / 'toy'} exists; go on with it (--resume)")


def test_a_finished_run_that_is_resumed_shows_its_result(toy_recipe, reidcore):
    _, first, _ = reidcore("run", toy_recipe, "-q")
    status, again, _ = reidcore("run", toy_recipe, "--resume")
    assert (status, again) == (0, first)


def test_seeds_make_one_run_each_and_a_table_of_their_spread(toy_recipe, reidcore):
    status, out, _ = reidcore("run", toy_recipe, "-q", "--seeds", "1,2", "--set", "training.epochs=1")
    runs = toy_recipe.parent / "runs"
    assert status == 0
    values = []
    for seed in (1, 2):
        assert tomli.loads((runs / f"toy-seed{seed}" / "recipe.toml").read_text())["run"]["seed"] == seed
        values.append(json.loads((runs / f"toy-seed{seed}" / "metrics.json").read_text())["folder"]["mAP"])
    assert "mean ± standard deviation of 2 seeds" in out
    assert f"{np.mean(values):.1%} ± {np.std(values, ddof=1):.1%}" in out


@pytest.mark.parametrize("seeds", ["one", "1,1", "-1", ""])
def test_seeds_that_are_none_are_refused(seeds, toy_recipe, reidcore):
    status, _, err = reidcore("run", toy_recipe, f"--seeds={seeds}")
    assert status == 2
    assert "expected" in err


def test_output_chooses_the_folder_of_run_folders(toy_recipe, tmp_path, reidcore):
    assert reidcore("run", toy_recipe, "-q", "--output", tmp_path / "other", "--set", "training.epochs=0")[0] == 0
    assert (tmp_path / "other" / "toy" / "metrics.json").is_file()


def test_evaluate_gives_the_figures_of_the_run_again(toy_recipe, reidcore):
    _, first, _ = reidcore("run", toy_recipe, "-q")
    status, again, err = reidcore("evaluate", toy_recipe.parent / "runs" / "toy")
    assert status == 0, err
    rows = [next(line for line in text.splitlines() if "folder" in line and "%" in line) for text in (first, again)]
    assert rows[0] == rows[1]
    assert "6 of 6" in rows[1]


def test_evaluate_takes_overrides(toy_recipe, reidcore):
    reidcore("run", toy_recipe, "-q", "--set", "training.epochs=0")
    status, out, _ = reidcore("evaluate", toy_recipe.parent / "runs" / "toy", "--set", "test.0.label=again")
    assert status == 0
    assert "again" in out


@pytest.mark.parametrize("verb", ["evaluate"])
def test_a_folder_that_is_no_run_is_refused(verb, tmp_path, reidcore):
    status, _, err = reidcore(verb, tmp_path)
    assert (status, err) == (2, f"{tmp_path} is not a finished run: it has no recipe.toml\n")


def test_python_runs_and_embeds(toy_recipe, toy_folder):
    finished = package.run(package.load_recipe(toy_recipe))
    embedder = package.load_model(finished.folder)
    files = sorted((toy_folder / "query").iterdir())
    from_paths = embedder.embed(files)
    images = [Image.open(file) for file in files]
    assert from_paths.shape == (6, embedder.dim)
    assert from_paths.dtype == np.float32
    assert embedder.embed([]).shape == (0, embedder.dim)
    np.testing.assert_allclose(embedder.embed(images), from_paths, rtol=1e-5)
    np.testing.assert_allclose(embedder.embed([np.asarray(image) for image in images]), from_paths, rtol=1e-5)


def test_flip_averaging_gives_an_image_and_its_mirror_image_the_same_embedding(toy_recipe, toy_folder):
    embedder = package.load_model(package.run(package.load_recipe(toy_recipe)).folder)
    image = Image.open(next((toy_folder / "query").iterdir()))
    pair = embedder.embed([image, image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)])
    np.testing.assert_allclose(pair[0], pair[1], rtol=1e-4, atol=1e-5)


def test_a_run_from_a_table(toy_folder, tmp_path):
    data = {"name": "folder", "root": str(toy_folder)}
    table = {
        "run": {"name": "table", "output": str(tmp_path / "out")},
        "train": [data],
        "test": [data],
        "input": {"height": 32, "width": 16, "workers": 0},
        "sampler": {"name": "identity-balanced", "identities": 3, "instances": 2},
        "backbone": {"name": "resnet18", "weights": "none"},
        "training": {"epochs": 0},
    }
    assert set(package.run(table).metrics["folder"]) == NAMES


REFUSALS = {
    "fewer identities than a batch takes": (
        ["sampler.identities=7"],
        "a batch takes 7 identities, but there are only 6 to train on; lower sampler.identities to at most 6",
    ),
    "a device that is none": (["run.device=gpu"], "run.device: found 'gpu'; expected 'auto', 'cpu', 'cuda'"),
    "a device that is not there": (["run.device=cuda:9"], "run.device: found 'cuda:9', but torch sees"),
    "a folder that is not there": (["train.0.root=/nowhere"], "there is no folder /nowhere; expected train/, query/"),
    "a schedule longer than the training": (
        ["scheduler.unit=epochs", "scheduler.flat_until=30"],
        "scheduler: the cosine begins at iteration",
    ),
    "a map that is none": (
        ["aggregator.source=stage5"],
        "aggregator: there is no map 'stage5'; did you mean 'stage4'?",
    ),
    "a view that is none": (
        ["loss=[{name='triplet', on=['globe']}]"],
        "loss.0: there is no view 'globe'; did you mean 'global'?",
    ),
    "a view that is none, of a loss that looks it up": (
        ["loss=[{name='center', on=['globe']}]"],
        "loss.0: there is no view 'globe'; did you mean 'global'?",
    ),
    "more cameras than the backbone knows": (
        ["backbone={name='vit-tiny', cameras=2}", "aggregator.name=avg"],
        "backbone.cameras: found 2, which are 0 to 1, but the training images come from cameras up to 2; write 3",
    ),
    "a holdout that takes all": (["evaluation.holdout=0.99"], "leaves no identity of 6 to train on"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_what_cannot_run_is_refused_with_one_sentence(case, toy_recipe, reidcore):
    overrides, message = REFUSALS[case]
    sets = [word for item in overrides for word in ("--set", item)]
    status, _, err = reidcore("run", toy_recipe, *sets)
    assert status == 2
    assert message in err
    assert "Traceback" not in err


BUILD_REFUSALS = ["a map that is none", "a view that is none", "a view that is none, of a loss that looks it up"]


@pytest.mark.parametrize("case", BUILD_REFUSALS)
def test_check_build_finds_misfits_without_data(case, toy_recipe, reidcore):
    overrides, message = REFUSALS[case]
    status, _, err = reidcore("check", toy_recipe, "--build", "--set", overrides[0], "--set", "train.0.root=/nowhere")
    assert status == 2
    assert message in err


def test_check_build_needs_no_weights(toy_recipe, reidcore):
    status, out, _ = reidcore("check", toy_recipe, "--build", "--set", "backbone={name='resnet18', weights='imagenet'}")
    assert (status, out) == (0, f"{toy_recipe}: no mistakes found\n")


def test_an_unreadable_image_is_named(toy_recipe, toy_folder, reidcore):
    bad = next((toy_folder / "train").iterdir())
    bad.write_bytes(b"no image")
    status, _, err = reidcore("run", toy_recipe, "--set", "input.workers=1")
    assert status == 2
    assert f"cannot read the image {bad}" in err
    assert "Traceback" not in err


def rename(folder, camera):
    """Give every image of a folder this camera."""
    for file in list(folder.iterdir()):
        file.rename(file.with_name(f"{file.name[:4]}_c{camera}_{file.stem[5:]}{file.suffix}"))


def test_preflight_stops_a_test_whose_queries_have_no_match_and_says_what_to_write(toy_recipe, toy_folder, reidcore):
    rename(toy_folder / "query", 1)
    rename(toy_folder / "gallery", 1)
    status, _, err = reidcore("run", toy_recipe)
    assert status == 2
    assert "test set 'folder': 6 of 6 queries have no match" in err
    assert 'cameras = "ignore"' in err
    assert not (toy_recipe.parent / "runs").exists()
    status, out, _ = reidcore("run", toy_recipe, "-q", "--set", "test.0.cameras=ignore", "--set", "training.epochs=0")
    assert status == 0
    assert "folder" in out


def test_preflight_counts_the_queries_without_a_match(toy_recipe, toy_folder, reidcore):
    for file in (toy_folder / "gallery").glob("0007*"):
        file.unlink()
    status, _, err = reidcore("run", toy_recipe, "--set", "training.epochs=0")
    text = " ".join(err.split())
    assert status == 0
    assert "test set 'folder': 2 of 6 queries have no match" in text
    assert "nowhere in the gallery" in text
    assert "(4 of 6 queries)" in text


def test_holdout_chooses_the_epoch_without_the_test_set(toy_recipe, reidcore):
    args = ("--set", "evaluation.holdout=0.34", "--set", "evaluation.every=1", "--set", "sampler.identities=2")
    status, _, err = reidcore("run", toy_recipe, *args)
    assert status == 0
    assert "24 images of 4 identities" in err
    assert "holdout: mAP" in err


def test_two_training_sets_are_joined_with_identities_and_cameras_apart(toy_recipe, toy_folder, reidcore):
    status, _, err = reidcore(
        "run",
        toy_recipe,
        "--set",
        "train.1.name=folder",
        "--set",
        f"train.1.root={toy_folder}",
        "--set",
        "training.epochs=0",
    )
    assert status == 0
    assert "72 images of 12 identities" in err


FULL_DISK = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, 2_000_000))
from reidcore.cli import main
sys.exit(main(sys.argv[1:]))
"""


def test_a_disk_that_is_full_is_one_sentence(toy_recipe):
    command = [sys.executable, "-c", FULL_DISK, "run", str(toy_recipe)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode == 2, result.stderr
    last = result.stderr.strip().splitlines()[-1]
    assert "Traceback" not in result.stderr
    assert "what was saved before is kept" in result.stderr, last
    assert not list((toy_recipe.parent / "runs" / "toy" / "checkpoints").glob("*"))


def test_a_finished_run_is_not_resumed_with_another_recipe(toy_recipe, reidcore):
    reidcore("run", toy_recipe, "-q", "--set", "training.epochs=1")
    status, _, err = reidcore("run", toy_recipe, "--resume", "--set", "optimizer.lr=1.0")
    assert status == 2
    assert "is finished, with another recipe (" in err
    assert "optimizer.lr was 0.00035 and is 1.0" in err
    assert "training.epochs was 1 and is 2" in err


def test_what_cannot_run_leaves_no_run_folder(toy_recipe, reidcore):
    for override in ("sampler.identities=7", "training={freeze=['x'], freeze_iterations=1}"):
        assert reidcore("run", toy_recipe, "--set", override)[0] == 2
    assert not (toy_recipe.parent / "runs").exists()
    assert reidcore("run", toy_recipe, "-q", "--set", "training.epochs=0")[0] == 0


def test_seeds_are_refused_before_the_first_trains(toy_recipe, reidcore):
    reidcore("run", toy_recipe, "-q", "--seeds", "2", "--set", "training.epochs=0")
    status, _, err = reidcore("run", toy_recipe, "-q", "--seeds", "1,2")
    assert status == 2
    assert "toy-seed2 exists" in err
    assert not (toy_recipe.parent / "runs" / "toy-seed1").exists()


def test_a_holdout_is_scored_every_epoch_whatever_the_metrics(toy_recipe, reidcore):
    args = ("evaluation.holdout=0.34", "sampler.identities=2", "metric=[{name='cmc', ranks=[1]}]")
    status, _, err = reidcore("run", toy_recipe, *(word for item in args for word in ("--set", item)))
    assert status == 0, err
    assert err.count("holdout: mAP") == 2
    assert err.count("folder: rank1") == 1


def test_a_missing_image_is_found_before_training(toy_recipe, toy_folder, tmp_path, reidcore):
    splits = ("train", "query", "gallery")
    files = [(file, split) for split in splits for file in sorted((toy_folder / split).iterdir())]
    rows = [f"{file},{file.name[:4]},{file.name[6]},{split}" for file, split in files]
    table = tmp_path / "table.csv"
    table.write_text("\n".join(["path,identity,camera,split", *rows, "gone.png,0007,1,gallery"]))
    keys = [f"{key}.{item}" for key in ("train.0", "test.0") for item in ("name=csv", f"file={table}")]
    status, _, err = reidcore("run", toy_recipe, *(word for key in keys for word in ("--set", key)))
    assert (status, err) == (2, f"1 of 55 images are missing: {tmp_path / 'gone.png'}\n")


def test_folders_of_identities_are_refused_with_what_to_do(toy_recipe, toy_folder, reidcore):
    for file in list((toy_folder / "train").iterdir()):
        folder = toy_folder / "train" / file.name[:4]
        folder.mkdir(exist_ok=True)
        file.rename(folder / file.name)
    status, _, err = reidcore("run", toy_recipe)
    assert status == 2
    assert "holds 6 folders but no images" in err
    assert "'csv'" in err


def test_a_log_that_cannot_be_written_is_one_sentence(toy_recipe):
    folder = toy_recipe.parent / "runs" / "toy"
    folder.mkdir(parents=True)
    (folder / "log.jsonl").symlink_to("/dev/full")
    command = [sys.executable, "-m", "reidcore", "run", str(toy_recipe)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode == 2, result.stderr
    assert f"cannot write {folder / 'log.jsonl'}: No space left on device" in result.stderr
    assert "Traceback" not in result.stderr


IDEA = """
from attrs import frozen
from reidcore import Component, hookimpl

@frozen(kw_only=True)
class Plain:
    "A head."
    def build(self, dim, classes):
        from reidcore.builtin.modules.heads import ClassifierHead
        return ClassifierHead(dim, classes, neck=False)

@hookimpl
def reidcore_heads():
    yield Component(name="plain", config=Plain)
"""


def test_a_run_with_a_plugin_in_one_file_says_so_when_it_is_loaded_without(toy_recipe, write, reidcore):
    plugin = write("idea.py", IDEA)
    args = ("--plugin", plugin, "--set", "head.name=plain", "--set", "training.epochs=0", "-q")
    assert reidcore("run", toy_recipe, *args)[0] == 0
    run = toy_recipe.parent / "runs" / "toy"
    status, _, err = reidcore("evaluate", run)
    assert status == 2
    assert "no head is called 'idea:plain'" in err
    assert f"note: the recipe was saved by a run with --plugin {plugin}" in err
    assert reidcore("evaluate", run, "--plugin", plugin)[0] == 0


def test_ctrl_c_keeps_what_was_trained_and_says_how_to_go_on(toy_recipe):
    command = [sys.executable, "-m", "reidcore", "run", str(toy_recipe), "--set", "training.epochs=500"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    log = toy_recipe.parent / "runs" / "toy" / "log.jsonl"
    while not (log.is_file() and log.stat().st_size):
        assert process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 2
    assert "go on with --resume" in err
    assert "Traceback" not in err
    assert list((log.parent / "checkpoints").glob("step-*"))
