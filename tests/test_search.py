"""Embedding files, indexes and searches, against comparing with all; and what each refuses, in which words."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

import reidcore as package
from reidcore.errors import DataError, ReidError
from reidcore.reporting import Bar
from reidcore.retrieval import Features, rank
from reidcore.retrieval import index as index_module
from reidcore.retrieval.index import KINDS, Index
from reidcore.retrieval.store import EmbeddingWriter, Paths, read_embeddings, write_embeddings

DIM = 33  # odd, and no multiple of what quantisers take together


def clustered(count: int, seed: int, dim: int = DIM) -> Features:
    """Return noisy images of 60 identities, the same ones for every seed."""
    random = np.random.default_rng(seed)
    centres = np.random.default_rng(0).normal(size=(60, dim))
    identities = random.integers(0, 60, count)
    scale = random.uniform(0.1, 10, (count, 1))  # which plays a role for the euclidean distance only
    embeddings = (scale * (centres[identities] + 0.7 * random.normal(size=(count, dim)))).astype(np.float32)
    return Features(embeddings, identities, identities % 4, paths=[f"photos/{seed}-{row}.jpg" for row in range(count)])


def stored(folder: Path, *features: Features, fingerprint: str = "one", distance: str = "cosine") -> list[Path]:
    files = []
    for number, item in enumerate(features):
        files.append(folder / f"{fingerprint}-{distance}-{number}-{len(list(folder.iterdir()))}.safetensors")
        write_embeddings(files[-1], item, fingerprint=fingerprint, distance=distance)
    return files


def exact(queries: np.ndarray, gallery: np.ndarray, distance: str) -> np.ndarray:
    """All distances, by the formula."""
    queries, gallery = queries.astype(np.float64), gallery.astype(np.float64)
    if distance == "euclidean":
        return np.linalg.norm(queries[:, None] - gallery[None], axis=2)
    queries, gallery = (side / np.linalg.norm(side, axis=1, keepdims=True) for side in (queries, gallery))
    return 1 - queries @ gallery.T


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Path]]:
    """Two embedding files a distance."""
    root = tmp_path_factory.mktemp("files")
    parts = (clustered(1500, 1), clustered(700, 2))
    return {distance: stored(root, *parts, distance=distance) for distance in ("cosine", "euclidean")}


GALLERY = np.concatenate([clustered(1500, 1).embeddings, clustered(700, 2).embeddings])
QUERIES = clustered(100, 3).embeddings


def test_an_embedding_file_gives_back_what_was_written(tmp_path):
    features = clustered(30, 0)
    (file,) = stored(tmp_path, features)
    read = read_embeddings(file)
    assert (read.fingerprint, read.distance, read.dim, len(read)) == ("one", "cosine", DIM, 30)
    assert isinstance(read.features.embeddings, np.memmap)
    assert read.features.embeddings.flags.aligned
    assert list(read.features.paths) == features.paths
    for name in ("embeddings", "identities", "cameras"):
        np.testing.assert_array_equal(getattr(read.features, name), getattr(features, name))
    np.testing.assert_array_equal(load_file(file)["embeddings"], features.embeddings)  # any reader of the format can
    indices, _ = rank(read.features, read.features, 1)
    np.testing.assert_array_equal(indices[:, 0], np.arange(30))


def test_paths_of_any_letters():
    texts = ["a/b.jpg", "", "日本 é.png", "bad\udce9.jpg"]
    paths = Paths.join([Paths.of(texts[:1]), Paths.of(texts[1:])])
    assert list(paths) == texts
    assert paths[-1] == texts[-1]
    assert paths[1:3] == texts[1:3]
    with pytest.raises(IndexError):
        paths[4]


@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_finds_the_nearest(kind, distance, files, tmp_path):
    Index.build(files[distance], tmp_path / "index", kind)
    index = Index.open(tmp_path / "index")
    rows, distances = index.search(QUERIES, 10)
    all_distances = exact(QUERIES, GALLERY, distance)
    nearest = np.argsort(all_distances, axis=1)[:, :10]
    recall = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(rows.tolist(), nearest.tolist(), strict=True)])
    assert recall >= (1 if kind == "flat" else 0.95)
    assert abs(recall - index.meta.recall) < 0.04  # what it says of itself, measured on vectors of its own
    expected = np.take_along_axis(all_distances, rows, 1)
    np.testing.assert_allclose(distances, expected, atol=1e-6 if kind == "flat" else 5e-3 * expected.max())
    assert (np.diff(distances, axis=1) >= 0).all()
    assert f"2200 vectors of {DIM} dimensions, {kind}" in index.describe()


@pytest.mark.parametrize("kind", KINDS)
def test_a_k_beyond_what_was_looked_at_finds_all(kind, files, tmp_path):
    index = Index.build(files["cosine"], tmp_path / "index", kind)
    rows, _ = index.search(QUERIES[:3], 5000)
    assert [sorted(row) for row in rows.tolist()] == [list(range(2200))] * 3
    np.testing.assert_array_equal(index.search(QUERIES, 3)[0], Index.open(tmp_path / "index").search(QUERIES, 3)[0])


def test_the_kind_is_chosen_by_size(tmp_path, monkeypatch):
    (file,) = stored(tmp_path, clustered(1200, 0))
    assert Index.build([file], tmp_path / "small").meta.kind == "flat"
    monkeypatch.setattr(index_module, "FLAT_UP_TO", 1200 * DIM - 1)
    assert Index.build([file], tmp_path / "middle").meta.kind == "ivf-sq"
    monkeypatch.setattr(index_module, "SQ_UP_TO", 1200 * DIM - 1)
    assert Index.build([file], tmp_path / "large").meta.kind == "ivf-pq"


def test_little_effort_is_enough_for_clusters_and_more_is_taken_for_noise(tmp_path):
    clusters = clustered(2000, 0)
    noise = Features(
        np.random.default_rng(0).normal(size=(2000, 64)), clusters.identities, clusters.cameras, clusters.paths
    )
    few, many = (
        Index.build(stored(tmp_path, item), tmp_path / name, "ivf-sq")
        for name, item in (("clusters", clusters), ("noise", noise))
    )
    assert few.meta.effort <= 4
    assert many.meta.effort >= 16
    assert many.meta.recall >= 0.98


def test_copies_count_as_found(tmp_path):
    features = clustered(50, 0)
    copies = Features(
        *(np.repeat(item, 40, axis=0) for item in (features.embeddings, features.identities, features.cameras)),
        paths=["x"] * 2000,
    )
    assert Index.build(stored(tmp_path, copies), tmp_path / "index", "ivf-sq").meta.recall == 1


@pytest.mark.parametrize("kind", KINDS)
def test_an_index_that_was_added_to_finds_what_one_built_at_once_does(kind, files, tmp_path):
    first, second = files["cosine"]
    Index.build([first], tmp_path / "grown", kind)
    before = {entry.name for entry in (tmp_path / "grown").iterdir()}
    added = Index.open(tmp_path / "grown").append([second])
    grown, once = Index.open(tmp_path / "grown"), Index.build([first, second], tmp_path / "once", kind)
    assert len(added) == len(grown) == len(once) == 2200
    assert list(grown.paths) == list(once.paths) == list(added.paths)
    np.testing.assert_array_equal(grown.identities, once.identities)
    np.testing.assert_array_equal(grown.cameras, once.cameras)
    results = [item.search(QUERIES, 10) for item in (grown, once, added)]
    if kind == "flat":
        for result in results[1:]:
            np.testing.assert_array_equal(result[0], results[0][0])
            np.testing.assert_array_equal(result[1], results[0][1])
    nearest = np.argsort(exact(QUERIES, GALLERY, "cosine"), axis=1)[:, :10]
    recall = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(results[0][0].tolist(), nearest.tolist(), strict=True)])
    assert recall >= 0.93
    names = {entry.name for entry in (tmp_path / "grown").iterdir()}
    assert len(names) == 3  # nothing of the old one is left
    assert names & before == {"index.json"}


def test_an_index_that_grew_much_says_so(tmp_path):
    small, large = stored(tmp_path, clustered(1000, 0), clustered(4000, 1))
    grown = Index.build([small], tmp_path / "index", "ivf-sq").append([large])
    assert "when it was built of 1000; it has grown so much that building it anew" in grown.describe()


@pytest.mark.parametrize("at", ["write_index", "save_file", "replace"])
def test_an_append_that_fails_leaves_the_index_as_it_was(at, files, tmp_path, monkeypatch):
    first, second = files["cosine"]
    index = Index.build([first], tmp_path / "index")
    before = {entry.name for entry in index.folder.iterdir()}

    def fail(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    owner = {"write_index": "faiss", "save_file": "reidcore.retrieval.index", "replace": "pathlib.Path"}[at]
    with monkeypatch.context() as patch:
        patch.setattr(f"{owner}.{at}", fail)
        with pytest.raises(ReidError, match=r"cannot write .*index: No space left on device"):
            index.append([second])
    assert {entry.name for entry in index.folder.iterdir()} == before
    assert len(Index.open(index.folder)) == 1500
    assert len(index.append([second])) == 2200


def test_of_two_that_add_at_the_same_time_one_is_refused(files, tmp_path):
    first, second = files["cosine"]
    index = Index.build([first], tmp_path / "index")

    def other(what: str, done: int, total: int) -> None:
        if what == "indexing":
            Index.open(index.folder).append([second])

    for report in (other, index_module._silent):
        with pytest.raises(ReidError, match="was changed meanwhile; nothing was added"):
            index.append([second], report)
        assert len(Index.open(tmp_path / "index")) == 2200
        assert len(list(index.folder.iterdir())) == 3


def test_embeddings_of_different_models_dimensions_and_distances_are_not_mixed(tmp_path):
    (one,) = stored(tmp_path, clustered(20, 0))
    index = Index.build([one], tmp_path / "index")
    others = {
        "are of different models": stored(tmp_path, clustered(20, 1), fingerprint="two"),
        "of 8 dimensions": stored(tmp_path, clustered(20, 1, dim=8)),
        "by euclidean distance": stored(tmp_path, clustered(20, 1), distance="euclidean"),
    }
    for words, (other,) in others.items():
        with pytest.raises(ReidError, match=words):
            Index.build([one, other], tmp_path / "new")
        with pytest.raises(ReidError, match=words):
            index.append([other])
    assert not (tmp_path / "new").exists()
    assert len(Index.open(tmp_path / "index")) == 20
    index.require_model("one", "runs/one")
    with pytest.raises(ReidError, match="of another model than runs/two"):
        index.require_model("two", "runs/two")
    with pytest.raises(ReidError, match=r"shape \(1, 8\); .* takes \(Q, 33\)"):
        index.search(np.ones((1, 8)))
    for bad in (np.full((2, DIM), np.nan), np.zeros((2, DIM))):
        with pytest.raises(ReidError, match=r"query: .*row 0"):
            index.search(bad)
    with pytest.raises(ReidError, match="k is 0"):
        index.search(QUERIES, 0)


BAD_ROWS = r"row 3 \(photos/0-3.jpg\) is all zeros, row 7 \(photos/0-7.jpg\) is not finite, row 8 .* and 1 more"


def spoil(features: Features) -> Features:
    features.embeddings[3] = 0
    features.embeddings[7, 5] = np.nan
    features.embeddings[8, 0] = -np.inf
    features.embeddings[9] = 0
    return features


def test_rows_that_compare_with_nothing_are_named(tmp_path):
    features = clustered(20, 0)
    (file,) = stored(tmp_path, features)
    with pytest.raises(ReidError, match=BAD_ROWS):
        writer = EmbeddingWriter(
            tmp_path / "bad", features.identities, features.cameras, features.paths, DIM, fingerprint=""
        )
        with writer:
            writer.add(spoil(clustered(20, 0)).embeddings)
    assert [entry.name for entry in tmp_path.iterdir()] == [file.name]
    with pytest.raises(ReidError, match=BAD_ROWS):
        write_embeddings(tmp_path / "bad", spoil(clustered(20, 0)), fingerprint="")
    raw = file.read_bytes()  # a file that another program wrote
    file.write_bytes(raw.replace(features.embeddings.tobytes(), spoil(clustered(20, 0)).embeddings.tobytes()))
    with pytest.raises(ReidError, match=BAD_ROWS):
        Index.build([file], tmp_path / "index")


def test_very_small_and_large_embeddings_are_compared(tmp_path):
    features = clustered(50, 0)
    features.embeddings[:25] *= 1e-30
    features.embeddings[25:] *= 1e30
    index = Index.build(stored(tmp_path, features), tmp_path / "index")
    rows, distances = index.search(features.embeddings, 1)
    np.testing.assert_array_equal(rows[:, 0], np.arange(50))
    assert distances.max() < 1e-6


WRONG = {
    "shape": (lambda f: Features(f.embeddings[0], f.identities, f.cameras, f.paths), r"expected \(N, D\)"),
    "type": (lambda f: Features(np.full((20, 2), "x"), f.identities, f.cameras, f.paths), "not an array of numbers"),
    "lengths": (lambda f: Features(f.embeddings, f.identities[:9], f.cameras, f.paths), r"\(9,\); expected \(20,\)"),
    "labels": (lambda f: Features(f.embeddings, f.identities / 2, f.cameras, f.paths), "expected integers"),
    "paths": (lambda f: Features(f.embeddings, f.identities, f.cameras, f.paths[1:]), "19 paths for 20 embeddings"),
    "no paths": (lambda f: Features(f.embeddings, f.identities, f.cameras), "have no paths"),
    "none": (lambda f: Features(f.embeddings[:0], f.identities[:0], f.cameras[:0], []), "the given set is empty"),
}


@pytest.mark.parametrize("case", WRONG)
def test_features_that_are_unsound_are_not_written(case, tmp_path):
    make, words = WRONG[case]
    with pytest.raises(ReidError, match=words):
        write_embeddings(tmp_path / "file", make(clustered(20, 0)), fingerprint="")
    assert not list(tmp_path.iterdir())


def test_too_few_or_misshapen_embeddings_leave_no_file(tmp_path):
    with pytest.raises(ReidError, match="found 2 cameras for 3 paths; expected one each"):
        EmbeddingWriter(tmp_path / "file", [1, 2, 3], [0, 0], "abc", 4, fingerprint="")
    for rows, words in ((np.ones((2, 4), np.float32), "2 embeddings came; expected 3"), (np.ones((3, 5)), "shape")):
        with (
            pytest.raises(ReidError, match=words),
            EmbeddingWriter(tmp_path / "file", [1, 2, 3], [0, 0, 0], "abc", 4, fingerprint="") as writer,
        ):
            writer.add(rows)
    assert not list(tmp_path.iterdir())


def test_files_that_are_no_embedding_files_are_refused(tmp_path):
    (good,) = stored(tmp_path, clustered(20, 0))
    bad = tmp_path / "bad"
    for content, words in (
        (good.read_bytes()[:-5], "not an embedding file, or is damaged"),
        (good.read_bytes()[:20], "not an embedding file, or is damaged"),
        (b"", "not an embedding file, or is damaged"),
        (b"no such thing" * 20, "not an embedding file, or is damaged"),
    ):
        bad.write_bytes(content)
        with pytest.raises(ReidError, match=words):
            read_embeddings(bad)
    save_file({"weight": np.ones(3)}, bad)
    with pytest.raises(ReidError, match="found another kind of file; expected 'reidcore-embeddings-1'"):
        read_embeddings(bad)
    arrays = load_file(good)
    metadata = {"format": "reidcore-embeddings-1", "fingerprint": "one", "distance": "cosine"}
    for name, value, words in (
        ("identities", arrays["identities"][:5], "do not fit each other"),
        ("path_ends", arrays["path_ends"] + 1000, "do not fit each other"),
        ("cameras", arrays["cameras"].astype(np.float64), "lacks 'cameras' of type I64"),
        ("embeddings", arrays["embeddings"][:, 0].copy(), "do not fit each other"),
        ("embeddings", arrays["embeddings"][:, :0].copy(), "do not fit each other"),
    ):
        save_file({**arrays, name: value}, bad, metadata)
        with pytest.raises(ReidError, match=words):
            read_embeddings(bad)
    save_file(arrays, bad, {**metadata, "format": "reidcore-embeddings-2"})
    with pytest.raises(ReidError, match="the format 'reidcore-embeddings-2'"):
        read_embeddings(bad)
    save_file(arrays, bad, {"format": metadata["format"]})
    with pytest.raises(ReidError, match="lacks 'distance'"):
        read_embeddings(bad)
    for place, words in ((tmp_path, "not an embedding file"), (tmp_path / "gone", "there is no file")):
        with pytest.raises(ReidError, match=words):
            read_embeddings(place)


def test_folders_that_are_no_indexes_or_damaged_are_refused(tmp_path):
    files = stored(tmp_path, clustered(20, 0))
    good = Index.build(files, tmp_path / "good")
    with pytest.raises(ReidError, match=r"is not an index: it has no index.json"):
        Index.open(tmp_path)
    with pytest.raises(ReidError, match=r"good exists; add to it \(--append\), choose another name"):
        Index.build(files, tmp_path / "good")
    with pytest.raises(ReidError, match="exists and is not an index"):
        Index.build(files, tmp_path)
    with pytest.raises(ReidError, match="exists and is not an index"):
        Index.build(files, files[0])

    def broken(name: str, change: Callable[[Path], object]) -> str:
        shutil.rmtree(tmp_path / "bad", ignore_errors=True)
        shutil.copytree(tmp_path / "good", tmp_path / "bad")
        change(tmp_path / "bad" / name)
        with pytest.raises(ReidError) as caught:
            Index.open(tmp_path / "bad")
        return str(caught.value)

    def cut(file: Path) -> None:
        file.write_bytes(file.read_bytes()[:-40])

    assert "index.json is damaged" in broken("index.json", cut)
    assert "index.json is damaged" in broken("index.json", lambda file: file.write_text("[]"))
    assert "index.json is damaged" in broken(
        "index.json", lambda file: file.write_text('{"format": "reidcore-index-1"}')
    )
    assert "found format 'other'" in broken("index.json", lambda file: file.write_text('{"format": "other"}'))
    changed = json.loads((tmp_path / "good" / "index.json").read_text()) | {"count": 21}
    assert "tells of 21 vectors" in broken("index.json", lambda file: file.write_text(json.dumps(changed)))
    assert "cannot read" in broken(good.meta.vectors, cut)
    assert "cannot read" in broken(good.meta.vectors, Path.unlink)
    assert "not the labels of an index" in broken(good.meta.labels, cut)
    assert "there is no file" in broken(good.meta.labels, Path.unlink)


def test_lists_need_vectors(tmp_path):
    files = stored(tmp_path, clustered(20, 0))
    with pytest.raises(ReidError, match="ivf-pq needs at least 1000 vectors, found 20; leave the kind out"):
        Index.build(files, tmp_path / "index", "ivf-pq")
    for count in (1, 2):
        index = Index.build(stored(tmp_path, clustered(count, 0)), tmp_path / f"graph{count}", "hnsw")
        assert index.search(clustered(count, 0).embeddings)[0].shape == (count, count)


@pytest.fixture
def trained(toy_recipe: Path) -> Path:
    """Return the folder of a tiny run."""
    return package.run(package.load_recipe(toy_recipe, overrides=["training.epochs=0"])).folder


def test_embed_index_and_search(trained, toy_folder, tmp_path, reidcore):
    file, folder, sheet = tmp_path / "gallery.safetensors", tmp_path / "index", tmp_path / "sheet.png"
    status, out, err = reidcore("embed", trained, toy_folder / "gallery", "-o", file)
    assert (status, out) == (0, f"{file}: 12 embeddings of 128 dimensions\n"), err
    assert err == "identities and cameras are those of the file names\n"
    gallery = read_embeddings(file).features
    images = sorted((toy_folder / "gallery").iterdir())
    embedder = package.load_model(trained)
    np.testing.assert_allclose(gallery.embeddings, embedder.embed(images), rtol=1e-5, atol=1e-6)
    assert list(gallery.paths) == [str(image) for image in images]
    assert gallery.identities.tolist() == [int(image.name[:4]) for image in images]
    assert gallery.cameras.tolist() == [int(image.name[6]) for image in images]

    assert reidcore("index", file, "-o", folder)[:2] == (0, f"{folder}: 12 vectors of 128 dimensions, flat: exact\n")
    queries = sorted((toy_folder / "query").iterdir())
    status, out, err = reidcore("search", folder, "--run", trained, *queries, "-k", "4", "--json")
    assert status == 0, err
    found = json.loads(out)
    distances = exact(embedder.embed(queries), gallery.embeddings, "cosine")
    for number, item in enumerate(found):
        assert item["query"] == str(queries[number])
        assert [hit["rank"] for hit in item["hits"]] == [1, 2, 3, 4]
        order = np.argsort(distances[number])[:4]
        np.testing.assert_allclose([hit["distance"] for hit in item["hits"]], distances[number][order], atol=2e-6)
        for hit in item["hits"]:
            row = images.index(Path(hit["path"]))
            assert (hit["identity"], hit["camera"]) == (gallery.identities[row], gallery.cameras[row])

    images[0].unlink()
    status, out, err = reidcore("search", folder, "--run", trained, queries[0], "--sheet", sheet)
    assert status == 0, err
    lines = out.splitlines()
    assert lines[0] == str(queries[0])
    assert lines[1].split() == ["RANK", "DISTANCE", "IDENTITY", "CAMERA", "PATH"]
    assert [line.split()[0] for line in lines[2:]] == [str(number) for number in range(1, 11)]
    with Image.open(sheet) as picture:
        assert picture.width > 11 * 128
        assert picture.height > 192
        assert (211, 211, 211) in {colour for _, colour in picture.getcolors(2**20)}  # of the picture that is gone


def test_append_on_the_command_line(trained, toy_folder, tmp_path, reidcore):
    first, second, folder = tmp_path / "first", tmp_path / "second", tmp_path / "index"
    for file, part in ((first, "gallery"), (second, "query")):
        assert reidcore("embed", trained, toy_folder / part, "-o", file, "-q")[2] == ""
    status, _, err = reidcore("index", first, "-o", folder, "--append")
    assert (status, err) == (2, f"{folder} is not an index: it has no index.json\n")
    assert reidcore("index", first, "-o", folder)[0] == 0
    status, _, err = reidcore("index", second, "-o", folder)
    assert (status, err) == (2, f"the index {folder} exists; add to it (--append), choose another name, or remove it\n")
    status, _, err = reidcore("index", second, "-o", folder, "--append", "--kind", "flat")
    assert (status, err) == (2, "an index keeps its kind; leave out --kind, or --append\n")
    status, out, _ = reidcore("index", second, "-o", folder, "--append")
    assert (status, out) == (0, f"{folder}: 18 vectors of 128 dimensions, flat: exact\n")


def test_what_is_there_is_not_overwritten(trained, toy_folder, tmp_path, reidcore):
    file = tmp_path / "photo.png"
    file.write_bytes(b"precious")
    images = toy_folder / "gallery"
    refused = (2, "", f"{file} exists; choose another name, or remove it\n")
    assert reidcore("embed", trained, images, "-o", file) == refused
    assert reidcore("search", tmp_path, "--run", trained, images, "--sheet", file) == refused
    status, _, err = reidcore("search", tmp_path, "--run", trained, images, "--sheet", tmp_path / "sheet.txt")
    assert (status, err) == (
        2,
        f"cannot draw {tmp_path / 'sheet.txt'}: the suffix '.txt' is of no kind of picture; write .png or .jpg\n",
    )
    assert file.read_bytes() == b"precious"


def test_the_index_of_one_model_is_not_searched_with_another(trained, toy_recipe, toy_folder, tmp_path, reidcore):
    file, folder = tmp_path / "gallery", tmp_path / "index"
    args = ("--set", "training.epochs=0", "--set", "run.name=other", "--set", "run.seed=2")
    assert reidcore("run", toy_recipe, "-q", *args)[0] == 0
    other = trained.parent / "other"
    assert reidcore("embed", trained, toy_folder / "gallery", "-o", file)[0] == 0
    assert reidcore("index", file, "-o", folder)[0] == 0
    status, _, err = reidcore("search", folder, "--run", other, toy_folder / "query")
    assert status == 2
    assert err.startswith(f"the embeddings in {folder} are of another model than {other} (fingerprints ")


def test_the_fingerprint_is_of_all_that_makes_an_embedding(trained, tmp_path):
    first = package.load_model(trained).fingerprint
    moved = shutil.copytree(trained, tmp_path / "moved")
    assert package.load_model(moved).fingerprint == first
    recipe = (trained / "recipe.toml").read_text()
    for old, new, same in (
        ("flip = true", "flip = false", False),
        ("height = 32", "height = 48", False),
        ("workers = 0", "workers = 1", True),
        ("batch = 64", "batch = 8", True),
    ):
        assert old in recipe
        (moved / "recipe.toml").write_text(recipe.replace(old, new))
        assert (package.load_model(moved).fingerprint == first) == same, new


def test_names_of_another_form_give_unknown_identities(trained, toy_folder, tmp_path, reidcore):
    file = tmp_path / "embeddings"
    (toy_folder / "query" / "0006_c1_query0.png").rename(toy_folder / "query" / "IMG_1.png")
    status, _, err = reidcore("embed", trained, toy_folder / "query", "-o", file)
    assert status == 0
    assert err == (
        "identities and cameras are unknown: 1 of 6 names do not have the form <identity>_c<camera>_<anything>, "
        f"the first is {toy_folder / 'query' / 'IMG_1.png'}\n"
    )
    features = read_embeddings(file).features
    assert set(features.identities) == set(features.cameras) == {-1}
    assert reidcore("index", file, "-o", tmp_path / "index")[0] == 0
    status, out, _ = reidcore("search", tmp_path / "index", "--run", trained, toy_folder / "query" / "IMG_1.png")
    assert out.splitlines()[2].split()[:4] == ["1", "0.0000", "-", "-"]


def test_images_are_found_in_folders_below_and_named_once(toy_folder):
    from reidcore.builtin.modules.datasets import find_images

    (toy_folder / "query" / "notes.txt").write_text("")
    (toy_folder / "query" / ".hidden").mkdir()
    (toy_folder / "query" / ".hidden" / "a.png").write_text("")
    one = toy_folder / "train" / "0000_c1_train0.png"
    found = find_images([one, toy_folder])
    assert len(found) == len(set(found)) == 54
    assert found[0] == one
    (toy_folder / "empty").mkdir()
    for place, words in (
        (toy_folder / "empty", "holds no images"),
        (toy_folder / "gone", "there is no image or folder"),
    ):
        with pytest.raises(DataError, match=words):
            find_images([place])


def test_an_unreadable_image_is_named_and_leaves_no_file(trained, toy_folder, tmp_path, reidcore):
    bad = toy_folder / "gallery" / "0007_c1_gallery0.png"
    bad.write_bytes(b"no image")
    (tmp_path / "out").mkdir()
    status, _, err = reidcore("embed", trained, toy_folder / "gallery", "-o", tmp_path / "out" / "file")
    assert status == 2
    assert f"cannot read the image {bad}" in err
    assert not list((tmp_path / "out").iterdir())


class Screen:
    """A console that keeps what is printed."""

    is_terminal = False

    def __init__(self) -> None:
        self.lines: list[str] = []

    def print(self, text: str, **options: object) -> None:
        self.lines.append(text)


def told(times: Sequence[float], quiet: bool, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    screen = Screen()
    with Bar(screen, quiet) as bar:  # type: ignore[arg-type]
        for done, now in enumerate(times):
            monkeypatch.setattr("reidcore.reporting.time.monotonic", lambda now=now: now)
            bar("embedding", done, 100)
    return screen.lines


def test_long_work_without_a_terminal_is_a_line_every_ten_seconds(monkeypatch):
    assert told([0, 5, 11, 12, 30], False, monkeypatch) == [
        "embedding: 2 of 100, 8:59 left",
        "embedding: 4 of 100, 12:00 left",
    ]
    assert told([0, 1, 9], False, monkeypatch) == []
    assert told([0, 50], True, monkeypatch) == []
