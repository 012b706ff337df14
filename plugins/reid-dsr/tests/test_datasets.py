import pytest
from PIL import Image

from reid_dsr import OccludedReID, PartialILIDS, PartialReID
from reidcore.errors import DataError
from reidcore.retrieval import coverage


def make(root, *files):
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 8)).save(root / file)


LAYOUTS = [
    (PartialReID, "partial_body_images", "whole_body_images", (300, 300)),
    (PartialILIDS, "query", "gallery", (119, 119)),
    (PartialILIDS, "Probe", "Gallery", (119, 119)),
    (OccludedReID, "query", "gallery", (1000, 1000)),
    (OccludedReID, "occluded_body_images", "whole_body_images", (1000, 1000)),
]


@pytest.mark.parametrize(("dataset", "query", "gallery", "published"), LAYOUTS)
def test_a_layout_is_read_with_cameras_of_its_own(tmp_path, dataset, query, gallery, published):
    root = tmp_path / "set_1"  # which looks like a name of an image
    make(root, f"{query}/001_001.jpg", f"{query}/002_001.png", f"{gallery}/001_001.jpg", f"{gallery}/3_7.tif")
    make(root, f"{gallery}/002/002_01.jpg")
    (root / query / "Thumbs.db").write_text("")
    (root / query / "._001_001.jpg").write_text("")
    splits = dataset(root=root).build()
    assert splits.train == ()
    assert [(s.identity, s.camera) for s in splits.query] == [(1, 0), (2, 0)]
    assert sorted((s.identity, s.camera) for s in splits.gallery) == [(1, 1), (2, 1), (3, 1)]
    assert list(splits.notes) == [
        f"{root / query}: found 2 images; published {published[0]}",
        f"{root / gallery}: found 3 images; published {published[1]}",
    ]
    sides = [([s.identity for s in side], [s.camera for s in side]) for side in (splits.query, splits.gallery)]
    assert coverage(*sides[0], *sides[1], "cross-camera").covered == 2  # though the numbers in the names are equal


def test_names_may_be_a_bare_identity(tmp_path):
    make(tmp_path, "Probe/017.jpg", "Gallery/017.jpg")
    splits = PartialILIDS(root=tmp_path).build()
    assert splits.query[0].identity == splits.gallery[0].identity == 17


def test_published_counts_leave_no_note(tmp_path):
    names = [f"{identity:03d}_{image}.jpg" for identity in range(1, 61) for image in range(5)]
    for folder in ("partial_body_images", "whole_body_images"):
        (tmp_path / folder).mkdir()
        for name in names:
            (tmp_path / folder / name).write_bytes(b"")
    splits = PartialReID(root=tmp_path).build()
    assert (len(splits.query), len(splits.gallery), list(splits.notes)) == (300, 300, [])


def test_what_is_wrong_is_said(tmp_path):
    with pytest.raises(DataError, match="does not hold the folders query/ and gallery/, or Probe/ and Gallery/"):
        PartialILIDS(root=tmp_path).build()
    make(tmp_path, "query/someone.jpg", "query/001_1.jpg")
    (tmp_path / "gallery").mkdir()
    with pytest.raises(DataError, match=r"names of 1 images do not begin with an identity: someone\.jpg; expected"):
        PartialILIDS(root=tmp_path).build()
    (tmp_path / "query" / "someone.jpg").unlink()
    with pytest.raises(DataError, match="gallery holds no images; expected files <identity>_<anything>"):
        PartialILIDS(root=tmp_path).build()
