"""Each published data set, in miniature, gives exactly the expected images, people and cameras."""

import importlib.util
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest

from reidcore.assemble import read_data
from reidcore.catalog import Catalog
from reidcore.data import read_image
from reidcore.errors import DataError
from reidcore.recipe import load_recipe
from reidcore.retrieval import Features, evaluate
from reidcore.types import UNKNOWN

SPEC = importlib.util.spec_from_file_location("miniatures", Path(__file__).parent / "miniatures.py")
miniatures = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(miniatures)
CATALOG = Catalog.of()

# name and options -> (file, identity, camera) of train, query, gallery
EXPECTED = {
    "market1501": [
        [("0002_c1s1_000451_03.jpg", 2, 1), ("0002_c2s1_000551_01.jpg", 2, 2), ("0007_c6s3_077419_03.jpg", 7, 6)],
        [("0001_c1s1_001051_00.jpg", 1, 1), ("0003_c5s1_000001_00.jpg", 3, 5)],
        [
            ("0000_c3s1_000151_01.jpg", 0, 3),
            ("0001_c1s1_001051_03.jpg", 1, 1),
            ("0001_c4s6_000810_02.jpg", 1, 4),
            ("0003_c2s1_000301_00.jpg", 3, 2),
        ],
    ],
    "dukemtmc": [
        [("0001_c2_f0046182.jpg", 1, 2), ("0001_c8_f0046302.jpg", 1, 8)],
        [("0005_c2_f0046985.jpg", 5, 2)],
        [("0003_c1_f0044158.jpg", 3, 1), ("0005_c5_f0051341.jpg", 5, 5)],
    ],
    "msmt17": [
        [("0000_000_01_0303morning_0015_0.jpg", 0, 1), ("0001_002_05_0303noon_0000.jpg", 1, 5)],
        [("0000_000_02_0302morning_0030_0.jpg", 2, 2)],
        [("0000_001_15_0302morning_0034_0.jpg", 2, 15), ("0001_000_02_0302noon_0000_0.jpg", 3, 2)],
    ],
    "cuhk03": [
        [("1_001_1_01.png", 3, 0), ("1_001_2_06.png", 3, 1)],
        [("1_002_1_02.png", 5, 0)],
        [("1_002_2_10.png", 5, 1), ("2_001_2_07.png", 9, 1)],
    ],
    "veri776": [
        [("0001_c001_00016450_0.jpg", 1, 1), ("0001_c020_00016460_0.jpg", 1, 20)],
        [("0002_c002_00030600_0.jpg", 2, 2)],
        [("0002_c002_00030605_1.jpg", 2, 2), ("0002_c011_00031000_0.jpg", 2, 11), ("0005_c003_00031055_0.jpg", 5, 3)],
    ],
    "vehicleid": [
        [("0000001.jpg", 11, UNKNOWN), ("0000002.jpg", 11, UNKNOWN)],
        [("0000003.jpg", 7, UNKNOWN), ("0000004.jpg", 7, UNKNOWN), ("0000005.jpg", 8, UNKNOWN)],
        [("0000003.jpg", 7, UNKNOWN), ("0000004.jpg", 7, UNKNOWN), ("0000005.jpg", 8, UNKNOWN)],
    ],
    "veri-wild": [
        [("000001.jpg", 1, 5), ("000002.jpg", 1, 9)],
        [("000003.jpg", 30001, 12)],
        [("000004.jpg", 30001, 12), ("000005.jpg", 30001, 40)],
    ],
    "cub200": [
        [("a_1.jpg", 1, UNKNOWN), ("b_2.jpg", 100, UNKNOWN)],
        [("c_3.jpg", 101, UNKNOWN), ("d_4.jpg", 101, UNKNOWN)],
        [("c_3.jpg", 101, UNKNOWN), ("d_4.jpg", 101, UNKNOWN)],
    ],
    "cars196": [
        [("000001.jpg", 1, UNKNOWN), ("000002.jpg", 98, UNKNOWN)],
        [("000003.jpg", 99, UNKNOWN), ("000004.jpg", 99, UNKNOWN)],
        [("000003.jpg", 99, UNKNOWN), ("000004.jpg", 99, UNKNOWN)],
    ],
    "online-products": [
        [("111_0.JPG", 1, UNKNOWN), ("111_1.JPG", 1, UNKNOWN)],
        [("222_0.JPG", 9, UNKNOWN), ("222_1.JPG", 9, UNKNOWN)],
        [("222_0.JPG", 9, UNKNOWN), ("222_1.JPG", 9, UNKNOWN)],
    ],
    "in-shop": [
        [("02_1_front.jpg", 2, UNKNOWN)],
        [("04_1_front.jpg", 7, UNKNOWN)],
        [("04_2_side.jpg", 7, UNKNOWN)],
    ],
    "airport": [[("a.jpg", 11001, 0), ("b.jpg", 11001, 1), ("e.jpg", 401999, 0)]],
    "caviar4reid": [[("0001001.jpg", 1, UNKNOWN), ("0001002.jpg", 1, UNKNOWN), ("0010001.jpg", 10, UNKNOWN)]],
    "cuhk-sysu": [[("p1_s15536_1.jpg", 1, UNKNOWN), ("p1_s2.jpg", 1, UNKNOWN), ("p20_s3_1.jpg", 20, UNKNOWN)]],
    "grid": [[("0001_1_25004_107_32_106_221.jpeg", 1, 1), ("0001_2_1.jpeg", 1, 2)]],
    "ilids": [[("cam1_a.png", 0, 0), ("cam2_b.png", 0, 1), ("cam1_c.png", 1, 0)]],
    "lpw": [[("0.jpg", 0, 0), ("1.jpg", 0, 1), ("0.jpg", 1, 0)]],
    "3dpes": [[("1_01.bmp", 1, UNKNOWN), ("1_02.bmp", 1, UNKNOWN), ("10_01.bmp", 10, UNKNOWN)]],
    "pku-reid": [[("001_1_01.png", 1, 1), ("001_2_01.png", 1, 2), ("002_1_01.png", 2, 1)]],
    "prai1581": [[("00000000_0003_1.jpg", 0, 3), ("00000000_0010_00000000.jpg", 0, 10), ("00000001_0003_1.jpg", 1, 3)]],
    "prid2011": [[("a_0001.png", 1, 0), ("b_0001.png", 1, 1)]],
    "saivt": [[("0001-001-01-0001.jpeg", 1, 1), ("0001-001-08-0001.jpeg", 1, 8)]],
    "sensereid": [[("00001_0.jpg", 1, 0), ("00001_1.jpg", 1, 1), ("00002_1.jpg", 2, 1)]],
    "shinpuhkan": [[("001_01_15_0001.jpg", 1, 15), ("001_02_16_0002.jpg", 1, 16), ("002_02_16_0003.jpg", 2, 16)]],
    "sysu-mm01": [[("0001.jpg", 1, 1), ("0001.jpg", 1, 2), ("0001.jpg", 2, 5)]],
    "thermalworld": [[("a.jpg", 1, UNKNOWN), ("b.jpg", 1, UNKNOWN), ("a.jpg", 2, UNKNOWN)]],
    "viper": [[("000_45.bmp", 0, 0), ("001_0.bmp", 1, 0), ("000_90.bmp", 0, 1)]],
    "wildtrack": [[("0_00000000.png", 0, 0), ("3_00000005.png", 0, 3), ("0_00000000.png", 12, 0)]],
}


def read(name: str, root: Path, **options: object):
    miniatures.MAKE[name](root)
    return CATALOG.build("dataset", name, {"root": str(root), **options})


def listed(samples) -> list[tuple[str, int, int]]:
    return [(Path(sample.name).name, sample.identity, sample.camera) for sample in samples]


def test_every_published_set_has_a_miniature() -> None:
    forms = {"folder", "csv", "lfw", "synthetic"}
    names = {component.name for component in CATALOG.components("dataset")} - forms
    assert names == miniatures.MAKE.keys() == EXPECTED.keys()


@pytest.mark.parametrize("name", EXPECTED)
def test_images_people_and_cameras_are_those_of_the_layout(name: str, tmp_path: Path) -> None:
    splits = read(name, tmp_path)
    parts = [splits.train, splits.query, splits.gallery]
    assert [listed(part) for part in parts] == [*EXPECTED[name], [], []][:3]
    for sample in (*splits.train, *splits.query, *splits.gallery):
        assert read_image(sample).shape[0] == 3


@pytest.mark.parametrize("name", EXPECTED)
def test_a_missing_folder_says_what_should_lie_there_and_where_to_get_it(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        CATALOG.build("dataset", name, {"root": str(tmp_path / "nowhere")})
    message = str(caught.value)
    assert message.startswith(f"there is no folder {tmp_path / 'nowhere'}; expected ")
    assert "it is to be had from http" in message


@pytest.mark.parametrize(
    ("name", "note"),
    [
        ("market1501", "found 3 train images; published 12936"),
        ("dukemtmc", "found 2 gallery images; published 17661"),
        ("msmt17", "found 2 train images; published 30248"),
        ("cuhk03", "found 2 train images; published 7368"),
        ("veri776", "found 1 query images; published 1678"),
        ("vehicleid", "found 3 test images; published 6493"),
        ("veri-wild", "found 2 gallery images; published 38861"),
        ("cub200", "found 2 test images; published 5924"),
        ("viper", "found 2 identities and 3 images; published 632 and 1264"),
    ],
)
def test_another_count_than_the_published_one_is_told(name: str, note: str, tmp_path: Path) -> None:
    assert f"{tmp_path}: {note}" in read(name, tmp_path).notes


def test_the_distractors_of_market_are_nobody(tmp_path: Path) -> None:
    splits = read("market1501", tmp_path, distractors=True)
    assert listed(splits.gallery)[-2:] == [("-1_c1s1_000002_01.jpg", 0, 1), ("0000_c2s3_000001_01.jpg", 0, 2)]
    assert f"{tmp_path / 'images'}: found 2 distractors; published 500000" in splits.notes


def test_junk_and_distractors_do_to_a_ranking_what_market_says(tmp_path: Path) -> None:
    """By hand: the gallery at distances 1, 2, 3, 4 is a distractor, the query's person by its own camera, the same by
    another camera, somebody else. The second is junk, so the match is second of three: AP 1/2, no rank-1."""
    splits = read("market1501", tmp_path)
    query, gallery = splits.query[:1], splits.gallery

    def features(samples, values):
        identities, cameras = ([getattr(s, name) for s in samples] for name in ("identity", "camera"))
        return Features(np.array(values, np.float32)[:, None], np.array(identities), np.array(cameras))

    result = evaluate(features(query, [0]), features(gallery, [1, 2, 3, 4]), distance="euclidean")
    assert (result["mAP"], result["rank1"], result["rank5"]) == (0.5, 0.0, 1.0)


def test_detected_boxes_are_other_pictures(tmp_path: Path) -> None:
    labeled, detected = (read("cuhk03", tmp_path / boxes, boxes=boxes) for boxes in ("labeled", "detected"))
    pixels = [read_image(splits.gallery[0]) for splits in (labeled, detected)]
    assert [image.shape for image in pixels] == [(3, 9, 4)] * 2
    assert [int(image[0, 2, 1]) for image in pixels] == [20 + 9, 100 + 20 + 9]
    assert pickle.loads(pickle.dumps(labeled.gallery[0])) == labeled.gallery[0]


def test_pictures_that_were_unpacked_are_taken(tmp_path: Path) -> None:
    miniatures.cuhk03(tmp_path)
    miniatures.draw(tmp_path / "images_labeled", ["1_001_1_01.png"])
    splits = CATALOG.build("dataset", "cuhk03", {"root": str(tmp_path)})
    assert splits.train[0].image == tmp_path / "images_labeled" / "1_001_1_01.png"


def test_without_h5py_it_says_what_to_install(tmp_path: Path, monkeypatch) -> None:
    miniatures.cuhk03(tmp_path)
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(DataError, match=r'pip install "reidcore\[cuhk03\]"'):
        CATALOG.build("dataset", "cuhk03", {"root": str(tmp_path)})


@pytest.mark.parametrize(
    ("name", "file", "text", "message"),
    [
        ("vehicleid", "train_test_split/train_list.txt", "1 2\nx\n", ":2: found 'x'; expected '<image> <identity>'"),
        ("veri-wild", "train_test_split/test_3000.txt", "1/9\n", ": 1 images are not in vehicle_info.txt, as 1/9"),
        ("in-shop", "Eval/list_eval_partition.txt", "1\nh\na b c\n", ":3: found 'a b c'; expected '<file> id_<number>"),
        ("cub200", "image_class_labels.txt", "7 1\n", ": image 7 is not in images.txt"),
        ("msmt17", "list_query.txt", "a 1\n", ":1: found 'a 1'; expected '<folder>/<identity>_<number>_<camera>_"),
        ("airport", "filepath.txt", "a\n", ":1: found 'a'; expected '<camera>\\<identity>\\<file>'"),
    ],
)
def test_faulty_lines_are_told(name: str, file: str, text: str, message: str, tmp_path: Path) -> None:
    miniatures.MAKE[name](tmp_path)
    (tmp_path / file).write_text(text)
    with pytest.raises(DataError) as caught:
        CATALOG.build("dataset", name, {"root": str(tmp_path)})
    assert str(caught.value).startswith(f"{tmp_path / file}{message}")


@pytest.mark.parametrize(
    ("name", "given", "protocol"),
    [
        ("vehicleid", "", "vehicleid"),
        ("cub200", "", "all-cameras"),
        ("in-shop", "", "in-shop"),
        ("market1501", "", "cross-camera"),
        ("cuhk03", 'protocol = "single-gallery-shot"', "single-gallery-shot"),
        ("cub200", 'protocol = "cross-camera"', "cross-camera"),
    ],
)
def test_a_set_is_compared_as_it_is_published(name, given, protocol, tmp_path, write) -> None:
    miniatures.MAKE[name](tmp_path / "data")
    table = f'name = "{name}"\nroot = "{tmp_path / "data"}"\n'
    loaded = load_recipe(write("r.toml", f"[[train]]\n{table}[[test]]\n{table}{given}\n"))
    (test,) = read_data(loaded).tests
    assert test.protocol == protocol


def test_a_folder_of_something_else_is_told(tmp_path: Path) -> None:
    miniatures.draw(tmp_path, ["a.jpg"])
    with pytest.raises(DataError, match="holds no images of the form that is expected: cam_a/ and cam_b/"):
        CATALOG.build("dataset", "viper", {"root": str(tmp_path)})
