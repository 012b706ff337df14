"""From recipes to data and models: what is joined, held out and left out."""

import numpy as np
import pytest
import torch
from attrs import evolve

from reidcore.assemble import _combine, _hold_out, build_model, find_precision, make_evaluator, read_data
from reidcore.checkpoint import load_state, load_tensors, save_state
from reidcore.errors import RunError
from reidcore.recipe import load_recipe
from reidcore.types import Output, Sample


class Shown:
    """A picture that is never opened."""

    def __init__(self, name):
        self.name = name


def samples(*pairs):
    """Return samples of (identity, camera) pairs."""
    return [Sample(Shown(f"{number}"), identity, camera) for number, (identity, camera) in enumerate(pairs)]


def test_joined_sets_keep_identities_and_cameras_apart():
    joined = _combine([samples((3, 1), (5, 2)), samples((3, 1), (0, -1))])
    assert [(sample.identity, sample.camera) for sample in joined] == [(3, 1), (5, 2), (9, 4), (6, -1)]


def test_one_set_stays_as_it_is():
    given = samples((3, 1), (5, 2))
    assert _combine([given]) == given


FIRST = ("0010_c2_a", "0002_c1_a", "0002_c2_a", "0010_c2_b")  # as text, "10" would come before "2"
SECOND = ("0009_c1_a", "0002_c1_a", "0002_c2_a", "-001_c3_a")  # the last one is nobody


def mixed(tmp_path, *tables):
    """Read folders as training sets, (folder, its images) or (folder, its images, role); return (image, label, camera,
    set) of each image, in order, and the identities of the classes.
    """
    train = []
    for name, images, *role in tables:
        (tmp_path / name / "train").mkdir(parents=True)
        for image in images:
            (tmp_path / name / "train" / f"{image}.png").touch()
        train.append({"name": "folder", "root": str(tmp_path / name), "role": role[0] if role else "source"})
    data = read_data(load_recipe({"run": {"name": "x"}, "train": train}))
    found = [
        (sample.image.stem, label, sample.camera, sample.source)
        for sample, label in zip(data.train.samples, data.train.labels.tolist(), strict=True)
    ]
    return sorted(found, key=lambda item: (item[3], item[0])), data


def test_mixed_sets_number_their_identities_by_the_order_of_tables_and_within_a_set_as_numbers(tmp_path):
    found, data = mixed(tmp_path, ("first", FIRST), ("second", SECOND))
    assert found == [
        ("0002_c1_a", 0, 1, 0),
        ("0002_c2_a", 0, 2, 0),
        ("0010_c2_a", 1, 2, 0),
        ("0010_c2_b", 1, 2, 0),
        ("0002_c1_a", 2, 4, 1),  # cameras 0 to 2 are of the first set
        ("0002_c2_a", 2, 5, 1),
        ("0009_c1_a", 3, 4, 1),
    ]
    assert data.classes == 4


def test_what_sets_are_called_and_where_they_lie_changes_no_label(tmp_path):
    found, data = mixed(tmp_path, ("first", FIRST), ("second", SECOND))
    renamed, again = mixed(tmp_path, ("zebra/elsewhere", FIRST), ("aardvark", SECOND))
    assert (renamed, again.identities) == (found, data.identities)


def test_swapped_tables_swap_the_sets_and_keep_the_order_within_each(tmp_path):
    found, _ = mixed(tmp_path, ("first", FIRST), ("second", SECOND))
    swapped, data = mixed(tmp_path, ("1", SECOND), ("2", FIRST))
    labels = {(image, source): label for image, label, _, source in found}
    for image, label, _, source in swapped:
        assert label == labels[image, 1 - source] + (2 if source else -2)
    assert data.classes == 4


def test_a_target_set_among_mixed_ones_takes_no_label(tmp_path):
    found, data = mixed(tmp_path, ("first", FIRST), ("second", SECOND))
    more, with_target = mixed(tmp_path, ("a", FIRST), ("b", FIRST, "target"), ("c", SECOND))
    assert [item[:3] for item in more] == [item[:3] for item in found]
    assert with_target.identities == data.identities and len(with_target.targets) == len(FIRST)


def test_unlabelled_training_images_are_left_out(toy_recipe, toy_folder):
    for file in (toy_folder / "train").glob("0002*"):
        file.rename(file.with_name(file.name.replace("0002", "-001")))
    data = read_data(load_recipe(toy_recipe))
    assert (len(data.train.samples), data.classes) == (30, 5)
    assert set(np.unique(data.train.labels)) == set(range(5))


def test_held_out_identities_are_not_trained_on_and_every_query_has_a_match():
    given = samples(*((identity, camera) for identity in range(10) for camera in (0, 1, 1)))
    kept, test = _hold_out(given, 0.3, seed=1)
    trained = {sample.identity for sample in kept}
    held = {sample.identity for sample in test.splits.gallery}
    assert len(held) == 3
    assert not trained & held
    assert len(kept) + len(test.splits.gallery) == len(given)
    assert len(test.splits.query) == 6
    assert test.protocol == "cross-camera"
    assert test.coverage().covered == len(test.splits.query)


def test_a_holdout_without_cameras_does_not_let_an_image_find_itself():
    kept, test = _hold_out(samples(*((identity, -1) for identity in range(4) for _ in range(3))), 0.5, seed=1)
    assert test.protocol == "all-cameras"
    assert test.coverage().covered == len(test.splits.query)
    assert len(kept) == 6


def test_a_model_gives_the_same_kind_of_output_in_training_and_evaluation(toy_recipe):
    model = build_model(load_recipe(toy_recipe).recipe, classes=5)
    images = torch.randint(0, 256, (4, 3, 32, 16), dtype=torch.uint8)
    for output in (model.train()(images), model.eval()(images)):
        assert output.embedding.shape == (4, model.dim)
        assert output.logits["global"].shape == (4, 5)
        assert set(output.before) == set(output.after) == {"global"}
    assert set(model(images, want=("stage2",)).maps) == {"stage2"}


@pytest.mark.parametrize(("width", "dtype"), [(32, torch.float32), (64, torch.bfloat16)])
def test_maps_that_are_one_pixel_wide_are_computed_in_float32(toy_recipe, width, dtype):
    sizes = ["input.height=64", f"input.width={width}", "backbone.last_stride=2"]
    model = build_model(load_recipe(toy_recipe, overrides=sizes).recipe, classes=5).eval()
    with torch.autocast("cpu", torch.bfloat16):
        maps = model(torch.zeros(2, 3, 64, width), ["stage4"]).maps
    assert (maps["stage4"].dtype, maps["stage4"].shape[-1]) == (dtype, width // 32)


def test_a_model_does_not_change_its_images(toy_recipe):
    model = build_model(load_recipe(toy_recipe).recipe, classes=5)
    images = torch.rand(2, 3, 32, 16) * 255
    before = images.clone()
    model(images)
    assert torch.equal(images, before)


def test_images_are_normalised_by_the_backbones_mean_and_deviation(toy_recipe):
    model = build_model(load_recipe(toy_recipe).recipe, classes=5)
    image = torch.tensor([0.485, 0.456, 0.406])[None, :, None, None] * 255
    assert torch.allclose(model.normalize(image), torch.zeros(1, 3, 1, 1), atol=1e-5)
    white = model.normalize(torch.full((1, 3, 1, 1), 255, dtype=torch.uint8)).flatten()
    assert torch.allclose(white, (1 - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225]))


def test_precision_is_what_was_asked_for():
    cpu = torch.device("cpu")
    assert find_precision("float32", cpu) == torch.float32
    assert find_precision("bfloat16", cpu) == torch.bfloat16
    able = torch.cpu.get_capabilities()
    fast = able.get("avx512_bf16") or able.get("amx_bf16")
    assert find_precision("auto", cpu) == (torch.bfloat16 if fast else torch.float32)


def test_a_state_comes_back_as_it_was(tmp_path):
    shared = torch.arange(3.0)
    state = {
        "tensors": [shared, shared, {"scalar": torch.tensor(2), "empty": torch.zeros(0, 4)}],
        "numbers": {0: 1, 1: 0.1, "x": None, "flag": True, "text": "é"},
        "layout": torch.rand(2, 3, 4, 5).to(memory_format=torch.channels_last),
    }
    save_state(tmp_path / "state.safetensors", state)
    again = load_state(tmp_path / "state.safetensors")
    assert again["numbers"] == state["numbers"]
    assert torch.equal(again["layout"], state["layout"])
    assert torch.equal(again["tensors"][1], shared)
    assert again["tensors"][2]["scalar"].item() == 2
    assert again["tensors"][2]["empty"].shape == (0, 4)


def test_a_state_holds_no_objects(tmp_path):
    with pytest.raises(TypeError, match="found Sample"):
        save_state(tmp_path / "state.safetensors", {"sample": samples((1, 1))[0]})


@pytest.mark.parametrize("damage", [b"", b"garbage", None])
def test_a_damaged_file_is_an_error_that_names_it(damage, tmp_path):
    file = tmp_path / "state.safetensors"
    save_state(file, {"x": torch.rand(100)})
    file.write_bytes(file.read_bytes()[:-50] if damage is None else damage)
    for load in (load_state, load_tensors):
        with pytest.raises(RunError, match=f"cannot read {file}"):
            load(file)


def test_a_test_without_queries_is_refused(toy_recipe, toy_folder):
    data = read_data(load_recipe(toy_recipe))
    (test,) = data.tests
    with pytest.raises(Exception, match="test set 'folder' has no query images"):
        evolve(test, splits=evolve(test.splits, query=())).coverage()


class Told(torch.nn.Module):
    """A model that writes down which cameras it is told."""

    def __init__(self):
        super().__init__()
        self.cameras = []

    def forward(self, images, cameras=None):
        self.cameras += [None] * len(images) if cameras is None else cameras.tolist()
        return Output(images.float().mean((2, 3)), {}, {}, {}, {}, {})


def test_a_model_is_told_the_cameras_of_the_data_set_that_it_was_trained_on(toy_recipe):
    loaded = load_recipe(toy_recipe, overrides=["evaluation.holdout=0.4", "evaluation.batch=2"])
    data = read_data(loaded)
    for test in (data.tests[0], data.holdout):
        make_evaluator(loaded.recipe)(told := Told(), [test])
        expected = []
        for part in (test.splits.query, test.splits.gallery):
            for start in range(0, len(part), 2):
                expected += 2 * [sample.camera for sample in part[start : start + 2]]  # each batch, then mirrored
        assert set(expected) == {1, 2}
        assert told.cameras == expected


def test_a_model_is_not_told_the_cameras_of_another_data_set_or_of_joined_ones(toy_recipe, toy_folder, tmp_path):
    (tmp_path / "other").symlink_to(toy_folder)
    joined = f"train=[{{name='folder', root='{toy_folder}'}}, {{name='folder', root='{tmp_path}/other'}}]"
    for override in (f"test.0.root={tmp_path}/other", joined):
        loaded = load_recipe(toy_recipe, overrides=[override])
        make_evaluator(loaded.recipe)(told := Told(), read_data(loaded).tests)
        assert set(told.cameras) == {None}
