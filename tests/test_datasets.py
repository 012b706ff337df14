"""The readers of lists of images, on miniature trees."""

import os
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path

import pytest

from reidcore.builtin.modules.datasets import csv_table, folder
from reidcore.builtin.modules.published import dukemtmc, market1501, msmt17
from reidcore.errors import DataError
from reidcore.types import UNKNOWN, Sample, Splits


def tree(root: Path, files: Iterable[str]) -> Path:
    """Make empty files: lists of images are read without opening any."""
    for name in files:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def listed(samples: Sequence[Sample]) -> list[tuple[str, int, int]]:
    return [(Path(str(sample.image)).name, sample.identity, sample.camera) for sample in samples]


def read_market(root: Path) -> Splits:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return market1501(root)


def table(tmp_path: Path, text: str, encoding: str = "utf-8") -> Path:
    file = tmp_path / "images.csv"
    file.write_bytes(text.encode(encoding))
    return file


def csv_error(file: Path) -> str:
    with pytest.raises(DataError) as caught:
        csv_table(file)
    return str(caught.value)


def test_a_folder_gives_identities_and_cameras_in_the_order_of_names(tmp_path: Path) -> None:
    files = ["train/0012_c3_0001.jpg", "train/0002_c1_a_b.png", "query/7_c10.jpg", "gallery/0007_c02_x.JPEG"]
    splits = folder(tree(tmp_path, files))
    assert listed(splits.train) == [("0002_c1_a_b.png", 2, 1), ("0012_c3_0001.jpg", 12, 3)]
    assert listed(splits.query) == [("7_c10.jpg", 7, 10)]
    assert listed(splits.gallery) == [("0007_c02_x.JPEG", 7, 2)]
    assert splits.train[0].image == tmp_path / "train/0002_c1_a_b.png"


def test_identity_minus_1_in_a_folder_is_unknown(tmp_path: Path) -> None:
    splits = folder(tree(tmp_path, ["query/1_c1_0.jpg", "gallery/-1_c1_0.jpg", "gallery/0000_c1_0.jpg"]))
    assert [sample.identity for sample in splits.gallery] == [UNKNOWN, 0]


def test_hidden_files_and_files_that_are_no_images_are_ignored(tmp_path: Path) -> None:
    others = [".DS_Store", "._0001_c1_0.jpg", "Thumbs.db", "readme.txt", "labels.csv", "paper.pdf", "noextension"]
    splits = folder(tree(tmp_path, ["train/0001_c1_0.jpg", *(f"train/{name}" for name in others)]))
    assert listed(splits.train) == [("0001_c1_0.jpg", 1, 1)]


@pytest.mark.parametrize("suffix", ["jpg", "jpeg", "JPG", "png", "bmp", "webp", "tif", "ppm", "gif"])
def test_the_usual_kinds_of_images_are_read(tmp_path: Path, suffix: str) -> None:
    assert len(folder(tree(tmp_path, [f"train/0001_c1_0.{suffix}"])).train) == 1


def test_a_folder_may_lack_the_training_images(tmp_path: Path) -> None:
    splits = folder(tree(tmp_path, ["query/1_c1_0.jpg", "gallery/1_c2_0.jpg"]))
    assert (len(splits.train), len(splits.query), len(splits.gallery)) == (0, 1, 1)


def test_a_folder_may_lack_the_test_images(tmp_path: Path) -> None:
    splits = folder(tree(tmp_path, ["train/1_c1_0.jpg"]))
    assert (len(splits.train), len(splits.query), len(splits.gallery)) == (1, 0, 0)


@pytest.mark.parametrize(("found", "lacking"), [("query", "gallery"), ("gallery", "query")])
def test_one_half_of_a_test_is_an_error(tmp_path: Path, found: str, lacking: str) -> None:
    with pytest.raises(DataError, match=f"holds {found}/ but no {lacking}/; a test needs both"):
        folder(tree(tmp_path, [f"{found}/1_c1_0.jpg"]))


def test_a_root_that_is_not_there_is_named_with_what_it_should_hold(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        folder(tmp_path / "no")
    assert str(caught.value) == (
        f"there is no folder {tmp_path / 'no'}; expected train/, query/ and gallery/ with files "
        "<identity>_c<camera>_<anything>.<ext>"
    )


def test_a_relative_root_that_is_not_there_is_named_with_where_it_was_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=rf"^there is no folder no \(in {tmp_path}\); "):
        folder(Path("no"))


def test_a_root_without_any_of_the_folders_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds none of train/, query/ and gallery/; put the images into these"):
        folder(tree(tmp_path, ["images/1_c1_0.jpg"]))


@pytest.mark.parametrize(
    "name", ["cat.jpg", "0001c1_0.jpg", "0001_1_0.jpg", "0001_c1s1_0.jpg", "a_c1_0.jpg", "_c1.jpg"]
)
def test_a_name_of_another_form_is_an_error(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match="1 images do not have the form <identity>_c<camera>_<anything>: ") as caught:
        folder(tree(tmp_path, ["train/0001_c1_0.jpg", f"train/{name}"]))
    assert name in str(caught.value) and str(tmp_path / "train") in str(caught.value)


def test_names_of_another_form_are_counted_and_three_are_shown(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"names of 5 images .*: img0\.jpg, img1\.jpg, img2\.jpg …; rename them, or"):
        folder(tree(tmp_path, [f"train/img{number}.jpg" for number in range(5)]))


MARKET = [
    "bounding_box_train/0002_c1s1_000451_03.jpg",
    "bounding_box_train/0002_c6s2_000451_03.jpg",
    "query/0001_c1s1_001051_00.jpg",
    "bounding_box_test/-1_c1s1_000401_03.jpg",
    "bounding_box_test/0000_c4s6_000401_03.jpg",
    "bounding_box_test/0001_c2s1_001051_00.jpg",
    "bounding_box_test/Thumbs.db",
]


def test_market1501_leaves_out_identity_minus_1_and_keeps_the_distractors(tmp_path: Path) -> None:
    splits = read_market(tree(tmp_path, MARKET))
    assert listed(splits.train) == [("0002_c1s1_000451_03.jpg", 2, 1), ("0002_c6s2_000451_03.jpg", 2, 6)]
    assert listed(splits.query) == [("0001_c1s1_001051_00.jpg", 1, 1)]
    assert listed(splits.gallery) == [("0000_c4s6_000401_03.jpg", 0, 4), ("0001_c2s1_001051_00.jpg", 1, 2)]


def test_market1501_notes_counts_that_are_not_the_published_ones(tmp_path: Path) -> None:
    assert market1501(tree(tmp_path, MARKET)).notes == [
        f"{tmp_path}: found 2 train images; published 12936",
        f"{tmp_path}: found 1 query images; published 3368",
        f"{tmp_path}: found 2 gallery images; published 15913",
    ]


@pytest.mark.parametrize("name", ["bounding_box_train", "query", "bounding_box_test"])
def test_a_missing_folder_of_market1501_is_named(tmp_path: Path, name: str) -> None:
    root = tree(tmp_path, [file for file in MARKET if not file.startswith(name)])
    with pytest.raises(DataError, match=f"there is no folder {root / name}; expected bounding_box_train/, query/"):
        market1501(root)


def test_a_name_of_another_form_in_market1501_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"the form <identity>_c<camera>s<sequence>_<frame>: 0001_c1_0\.jpg;"):
        market1501(tree(tmp_path, [*MARKET, "query/0001_c1_0.jpg"]))


DUKE = [
    "bounding_box_train/0002_c1_f0044158.jpg",
    "bounding_box_train/0002_c8_f0044158.jpg",
    "query/0005_c2_f0046985.jpg",
    "bounding_box_test/0005_c4_f0046985.jpg",
    "bounding_box_test/0006_c4_f0056985.jpg",
    "bounding_box_test/Thumbs.db",
]


def test_dukemtmc_is_read_by_its_names(tmp_path: Path) -> None:
    splits = dukemtmc(tree(tmp_path, DUKE))
    assert listed(splits.train) == [("0002_c1_f0044158.jpg", 2, 1), ("0002_c8_f0044158.jpg", 2, 8)]
    assert listed(splits.query) == [("0005_c2_f0046985.jpg", 5, 2)]
    assert listed(splits.gallery) == [("0005_c4_f0046985.jpg", 5, 4), ("0006_c4_f0056985.jpg", 6, 4)]
    assert splits.notes[0] == f"{tmp_path}: found 2 train images; published 16522"
    with pytest.raises(DataError, match=r"have the form <identity>_c<camera>_f<frame>: 0001_c1s1_000\.jpg"):
        dukemtmc(tree(tmp_path, [*DUKE, "query/0001_c1s1_000.jpg"]))


LISTS = {
    "train": "0000/0000_000_01_0303morning_0008_0.jpg 0\n0001/0001_002_15_0113noon_1128_2_ex.jpg 1\n",
    "val": "0001/0001_003_02_0113noon_1128_2.jpg 1\n\n",
    "query": "0000/0000_000_05_0303morning_0032_1.jpg 0\n",
    "gallery": "0000/0000_001_14_0303morning_0032_1.jpg 0\n0007/0007_001_14_0303noon_0032_1.jpg 7\n",
}


def write_lists(root: Path, folders: Sequence[str]) -> Path:
    for name in folders:
        (root / name).mkdir(parents=True)
    for name, text in LISTS.items():
        (root / f"list_{name}.txt").write_text(text)
    return root


@pytest.mark.parametrize("folders", [("train", "test"), ("mask_train_v2", "mask_test_v2")])
def test_msmt17_is_read_by_its_lists(tmp_path: Path, folders: Sequence[str]) -> None:
    root = write_lists(tmp_path, folders)
    splits = msmt17(root)
    names = ["0000_000_01_0303morning_0008_0.jpg", "0001_002_15_0113noon_1128_2_ex.jpg"]
    assert listed(splits.train) == [(names[0], 0, 1), (names[1], 1, 15)]
    assert splits.train[0].image == root / folders[0] / "0000" / names[0]
    assert listed(splits.query) == [("0000_000_05_0303morning_0032_1.jpg", 2, 5)]  # after those of training
    assert [(sample.identity, sample.camera) for sample in splits.gallery] == [(2, 14), (9, 14)]
    assert splits.gallery[1].image == root / folders[1] / "0007" / "0007_001_14_0303noon_0032_1.jpg"
    assert [note.rpartition("; ")[2] for note in splits.notes] == [
        "published 30248",
        "published 11659",
        "published 82161",
    ]
    more = msmt17(root, validation=True)
    assert listed(more.train) == [*listed(splits.train), ("0001_003_02_0113noon_1128_2.jpg", 1, 2)]
    assert more.notes[0].endswith("published 32621")


def test_what_is_wrong_with_msmt17_is_named(tmp_path: Path) -> None:
    root = write_lists(tmp_path, ("train",))
    with pytest.raises(DataError, match=f"there is no folder {root / 'test'}; expected train/, test/ "):
        msmt17(root)
    (root / "test").mkdir()
    (root / "list_query.txt").write_text("0000/0000_000_05_1.jpg 0\nnonsense\n0000/a_b_05_1.jpg 0\n")
    with pytest.raises(DataError) as caught:
        msmt17(root)
    lines = str(caught.value).splitlines()
    assert [line.partition(";")[0] for line in lines] == [
        f"{root / 'list_query.txt'}:2: found 'nonsense'",
        f"{root / 'list_query.txt'}:3: found '0000/a_b_05_1.jpg 0'",
    ]
    (root / "list_query.txt").unlink()
    with pytest.raises(DataError, match=f"cannot read {root / 'list_query.txt'}: No such file"):
        msmt17(root)


def test_a_table_gives_paths_relative_to_its_folder(tmp_path: Path) -> None:
    text = "path,identity,camera,split\na/1.jpg,10,3,train\n/data/2.jpg,9,1,query\nb.jpg,9,2,gallery\n"
    splits = csv_table(table(tmp_path, text))
    assert splits.train == (Sample(tmp_path / "a/1.jpg", 10, 3),)
    assert splits.query == (Sample(Path("/data/2.jpg"), 9, 1),)
    assert splits.gallery == (Sample(tmp_path / "b.jpg", 9, 2),)


def test_text_identities_and_cameras_are_numbered_in_sorted_order(tmp_path: Path) -> None:
    text = "path,identity,camera,split\n1.jpg,zoe,north,train\n2.jpg,adam,east,train\n3.jpg,zoe,east,train\n"
    samples = csv_table(table(tmp_path, text)).train
    assert [(sample.identity, sample.camera) for sample in samples] == [(1, 1), (0, 0), (1, 0)]


def test_identities_that_are_the_same_number_written_differently_stay_apart(tmp_path: Path) -> None:
    text = "path,identity,split\n1.jpg,7,train\n2.jpg,007,train\n3.jpg,12,train\n"
    assert [sample.identity for sample in csv_table(table(tmp_path, text)).train] == [2, 0, 1]


def test_numbers_too_large_for_64_bits_are_numbered_like_texts(tmp_path: Path) -> None:
    text = f"path,identity,split\n1.jpg,{10**20},train\n2.jpg,5,train\n"
    assert [sample.identity for sample in csv_table(table(tmp_path, text)).train] == [0, 1]


@pytest.mark.parametrize("other", ["5", "eve"])
def test_identity_minus_1_in_a_table_is_unknown(tmp_path: Path, other: str) -> None:
    text = f"path,identity,camera,split\n1.jpg,-1,2,gallery\n2.jpg,{other},-1,gallery\n3.jpg,{other},,gallery\n"
    first, second, third = csv_table(table(tmp_path, text)).gallery
    assert first.identity == UNKNOWN != second.identity == third.identity
    assert (first.camera, second.camera, third.camera) == (2, UNKNOWN, UNKNOWN)


def test_a_table_without_cameras_has_unknown_ones(tmp_path: Path) -> None:
    (sample,) = csv_table(table(tmp_path, "split,path,identity\ntrain,1.jpg,3\n")).train
    assert sample == Sample(tmp_path / "1.jpg", 3, UNKNOWN)


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("path,identity,split\nä, b.jpg,3,train\n".replace("ä, b.jpg", '"ä, b.jpg"'), "utf-8-sig"),
        ('"path","identity","split"\r\n"ä, b.jpg","3","train"\r\n', "utf-8"),
        ('path, identity, split\n"ä, b.jpg", 3, train\n', "utf-8"),
        ('path,identity,split\n\n"ä, b.jpg",3,train\n\n', "utf-8"),
        ('note,path,identity,split\n"two\nlines","ä, b.jpg",3,train\n', "utf-8"),
    ],
    ids=["byte-order mark", "quoted, Windows", "spaces", "empty lines", "other columns"],
)
def test_forms_of_tables_that_programs_write(tmp_path: Path, text: str, encoding: str) -> None:
    assert csv_table(table(tmp_path, text, encoding)).train == (Sample(tmp_path / "ä, b.jpg", 3, UNKNOWN),)


def test_all_bad_rows_are_reported_with_their_lines(tmp_path: Path) -> None:
    text = (
        "path,identity,camera,split\n"
        "1.jpg,1,1,train\n"
        "2.jpg,1,1,test\n"  # line 3
        "\n"
        '3.jpg,1,"a\nb",train\n'  # lines 5 and 6
        ",1,1,query\n"  # line 7
        "4.jpg,,1,query\n"
        "5.jpg\n"  # line 9
        "6.jpg,1,1,gallery\n"
    )
    file = table(tmp_path, text)
    assert csv_error(file).splitlines() == [
        f"{file}:3: split: found 'test'; expected train, query or gallery",
        f"{file}:7: path is empty",
        f"{file}:8: identity is empty",
        f"{file}:9: split: found ''; expected train, query or gallery",
        f"{file}:9: identity is empty",
    ]


def test_after_twenty_faults_the_rest_is_counted(tmp_path: Path) -> None:
    lines = csv_error(table(tmp_path, "path,identity,split\n" + "x.jpg,1,test\n" * 25)).splitlines()
    assert (len(lines), lines[-1]) == (21, "and 5 more")


def test_a_missing_column_is_named_with_those_found(tmp_path: Path) -> None:
    file = table(tmp_path, "path,person,split\n")
    assert csv_error(file) == f"{file}: the column identity is missing; found path, person, split"


def test_an_empty_table_has_no_columns(tmp_path: Path) -> None:
    file = table(tmp_path, "")
    assert csv_error(file) == f"{file}: the column path is missing; found none"


def test_a_table_that_is_not_there_is_named(tmp_path: Path) -> None:
    assert csv_error(tmp_path / "no.csv") == f"cannot read {tmp_path / 'no.csv'}: No such file or directory"


def test_a_table_that_is_not_in_utf_8_says_what_was_expected(tmp_path: Path) -> None:
    file = table(tmp_path, "path,identity,split\nä.jpg,1,train\n", "latin-1")
    found = csv_error(file)
    assert found.startswith(f"cannot read {file}: ") and found.endswith("expected a comma-separated table in UTF-8")


@pytest.mark.skipif(os.name == "nt", reason="Windows has other rules for names")
def test_the_order_of_images_does_not_depend_on_the_file_system(tmp_path: Path) -> None:
    names = [f"train/{number:04d}_c1_0.jpg" for number in (5, 3, 9, 1)]
    assert [sample.identity for sample in folder(tree(tmp_path, names)).train] == [1, 3, 5, 9]
