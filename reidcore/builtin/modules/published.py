"""Readers of published data sets, each as it is handed out. The images are opened when they are needed."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from attrs import evolve, frozen
from PIL import Image

from reidcore.builtin.modules.datasets import numbers, read_folder, require_folder
from reidcore.errors import DataError, first_of
from reidcore.types import UNKNOWN, Sample, Splits

_MARKET = re.compile(r"(-?\d+)_c(\d)s\d+_.*")
_DUKE = re.compile(r"(-?\d+)_c(\d)_f\d+")
_MSMT = r"((?:.*/)?\d+_\d+_(\d+)_[^/]*) (\d+)"
_VERI = re.compile(r"(\d+)_c(\d+)_.*")
_SPLITS = ("train", "query", "gallery")


def _splits(root: Path, parts: Sequence[Sequence[Sample]], published: Sequence[int]) -> Splits:
    train, query, gallery = parts
    return Splits(train, query, gallery, unlike(root, parts, published))


def unlike(root: Path, parts: Sequence[Sequence[Sample]], published: Sequence[int]) -> list[str]:
    """Return a note for each part whose number of images is not the published one."""
    return [
        f"{root}: found {len(part)} {split} images; published {count}"
        for split, part, count in zip(_SPLITS, parts, published, strict=True)
        if len(part) != count
    ]


def read_lines(file: Path, pattern: str, expected: str, skip: int = 0) -> list[re.Match[str]]:
    """Return the matches of a list's lines, without the first `skip`. Raises DataError with all faulty lines."""
    try:
        lines = file.read_text("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {file}: {getattr(error, 'strerror', None) or error}") from None
    compiled = re.compile(pattern)
    found, faults = [], []
    for number, line in enumerate(lines[skip:], start=skip + 1):
        if match := compiled.fullmatch(line.strip()):
            found.append(match)
        elif line.strip():
            faults.append(f"{file}:{number}: found '{line.strip()}'; expected {expected}")
    if faults:
        raise DataError(first_of(faults))
    return found


def market1501(root: Path, distractors: bool = False) -> Splits:
    """Read Market-1501: images of identity -1 are left out, those of identity 0 are distractors of the gallery.

    With `distractors` the 500,000 images of nobody in `images/` are in the gallery too. Raises DataError when a folder
    is missing; notes a count that is not the published one.
    """
    form = (_MARKET, "<identity>_c<camera>s<sequence>_<frame>")
    splits = _bounding_boxes(root, "Market-1501-v15.09.15", form, (12936, 3368, 15913))
    if not distractors:
        return splits
    require_folder(root / "images", "the 500k distractors of Market-1501")
    more = [evolve(sample, identity=0) for sample in read_folder(root / "images", *form)]
    notes = [] if len(more) == 500_000 else [f"{root / 'images'}: found {len(more)} distractors; published 500000"]
    return evolve(splits, gallery=[*splits.gallery, *more], notes=[*splits.notes, *notes])


def dukemtmc(root: Path) -> Splits:
    """Read DukeMTMC-reID. Raises DataError when a folder is missing; notes a count that is not the published one."""
    return _bounding_boxes(root, "DukeMTMC-reID", (_DUKE, "<identity>_c<camera>_f<frame>"), (16522, 2228, 17661))


def _bounding_boxes(
    root: Path, name: str, form: tuple[re.Pattern[str], str], published: tuple[int, int, int]
) -> Splits:
    layout = f"bounding_box_train/, query/ and bounding_box_test/ of {name}"
    require_folder(root, layout)
    parts = []
    for folder in ("bounding_box_train", "query", "bounding_box_test"):
        require_folder(root / folder, layout)
        samples = read_folder(root / folder, *form)
        parts.append(tuple(sample for sample in samples if sample.identity != UNKNOWN))
    return _splits(root, parts, published)


def msmt17(root: Path, validation: bool = False) -> Splits:
    """Read MSMT17 in its first or second version, by its lists; with `validation` that list is trained on too.

    Test identities, which the lists count from 0 again, follow those of training. Raises DataError when a folder or a
    list is missing, and with all faulty lines; notes a count that is not the published one.
    """
    layout = "train/, test/ (or mask_train_v2/, mask_test_v2/) and list_train.txt, list_val.txt, list_query.txt, "
    require_folder(root, layout + "list_gallery.txt of MSMT17")
    folders = ("mask_train_v2", "mask_test_v2") if (root / "mask_train_v2").is_dir() else ("train", "test")
    for folder in folders:
        require_folder(root / folder, layout + "list_gallery.txt of MSMT17")
    expected = "'<folder>/<identity>_<number>_<camera>_<more>.jpg <identity>'"

    def read(name: str, folder: str, first: int = 0) -> tuple[Sample, ...]:
        lines = read_lines(root / f"list_{name}.txt", _MSMT, expected)
        return tuple(Sample(root / folder / line[1], first + int(line[3]), int(line[2])) for line in lines)

    train, more = (read(name, folders[0]) for name in ("train", "val"))
    first = 1 + max((sample.identity for sample in (*train, *more)), default=-1)
    query, gallery = (read(name, folders[1], first) for name in ("query", "gallery"))
    train += more if validation else ()
    notes = unlike(root, (train, query, gallery), (32621 if validation else 30248, 11659, 82161))
    return Splits(train, query, gallery, notes)


def people(root: Path, pattern: str, layout: str, published: tuple[int, int] | None) -> Splits:
    """Read a set to train on, whose files below `root` say by their paths who is on them.

    pattern: of the path from `root`, with a group `identity`, and perhaps `scene` (the same text is somebody else in
    another one) and `camera`. Other files are left out. published: numbers of identities and images, which are noted if
    they are others. Raises DataError for a missing folder, and if no path has the form.
    """
    require_folder(root, layout)
    compiled = re.compile(pattern)
    names = sorted(file.relative_to(root).as_posix() for file in root.rglob("*") if file.name[0] != ".")
    matches = [match for name in names if (match := compiled.fullmatch(name))]
    if not matches:
        raise DataError(f"{root} holds no images of the form that is expected: {layout}")
    parts = [match.groupdict() for match in matches]
    identities = numbers([f"{part.get('scene') or ''}{part['identity']}" for part in parts])
    cameras = numbers([part.get("camera") or "" for part in parts])
    train = [
        Sample(
            root / match[0],
            identities[f"{part.get('scene') or ''}{part['identity']}"],
            cameras[part.get("camera") or ""],
        )
        for match, part in zip(matches, parts, strict=True)
    ]
    notes = []
    if published and (found := (len({sample.identity for sample in train}), len(train))) != published:
        notes.append(
            f"{root}: found {found[0]} identities and {found[1]} images; published {published[0]} and {published[1]}"
        )
    return Splits(train, notes=notes)


def airport(root: Path) -> Splits:
    """Read Airport: `filepath.txt` lists `<camera>\\<identity>\\<file>`; people have the numbers 11001 to 401999.

    Others are detections of nobody. Raises DataError for a missing folder, and with all faulty lines of the list.
    """
    require_folder(root, "filepath.txt and the folders of cameras of Airport (ALERT)")
    lines = read_lines(root / "filepath.txt", r"([^\\/]+)[\\/](\d+)[\\/](.+)", "'<camera>\\<identity>\\<file>'")
    cameras = numbers([line[1] for line in lines])
    return Splits(
        [
            Sample(root / line[1] / line[2] / line[3], int(line[2]), cameras[line[1]])
            for line in lines
            if 11001 <= int(line[2]) <= 401999
        ]
    )


def veri776(root: Path) -> Splits:
    """Read VeRi-776. Raises DataError for a missing folder; notes a count that is not the published one."""
    layout = "image_train/, image_query/ and image_test/ of VeRi-776"
    require_folder(root, layout)
    parts = []
    for folder in ("image_train", "image_query", "image_test"):
        require_folder(root / folder, layout)
        parts.append(read_folder(root / folder, _VERI, "<identity>_c<camera>_<anything>"))
    return _splits(root, parts, (37778, 1678, 11579))


_VEHICLEID = {"small": (800, 6493), "medium": (1600, 13377), "large": (2400, 19777), "all": (13164, 0)}


def vehicleid(root: Path, size: str) -> Splits:
    """Read VehicleID with one of its test lists; all test images are queries and gallery, of which the protocol draws.

    There are no cameras. Raises DataError for a missing folder or list, and with all faulty lines.
    """
    require_folder(root, "image/ and train_test_split/ of VehicleID")
    require_folder(root / "image", "the images of VehicleID")
    identities, published = _VEHICLEID[size]

    def read(name: str) -> list[Sample]:
        file = root / "train_test_split" / f"{name}.txt"
        lines = read_lines(file, r"(\d+) (\d+)", "'<image> <identity>'")
        return [Sample(root / "image" / f"{line[1]}.jpg", int(line[2])) for line in lines]

    train, test = read("train_list"), read(f"test_list_{identities}")
    return Splits(train, test, test, _not_as_published(root, train, test, (113346, published)))


_VERI_WILD = {"small": (3000, 38861), "medium": (5000, 64389), "large": (10000, 128517)}


def veri_wild(root: Path, size: str) -> Splits:
    """Read VERI-Wild with one of its test sets; cameras are those of `vehicle_info.txt`.

    Raises DataError for a missing folder or list, with all faulty lines, and for an image without a camera.
    """
    require_folder(root, "images/ and train_test_split/ of VERI-Wild")
    lists = root / "train_test_split"
    info = read_lines(lists / "vehicle_info.txt", r"(\d+)/(\w+);(\d+)(?:;.*)?", "'<identity>/<image>;<camera>;…'", 1)
    cameras = {line[2]: int(line[3]) for line in info}

    def read(name: str) -> list[Sample]:
        lines = read_lines(lists / f"{name}.txt", r"(\d+)/(\w+)(?:\.jpg)?", "'<identity>/<image>'")
        if unknown := [line[0] for line in lines if line[2] not in cameras]:
            raise DataError(f"{lists / name}.txt: {len(unknown)} images are not in vehicle_info.txt, as {unknown[0]}")
        return [Sample(root / "images" / line[1] / f"{line[2]}.jpg", int(line[1]), cameras[line[2]]) for line in lines]

    queries, gallery = _VERI_WILD[size]
    parts = [read(name) for name in ("train_list", f"test_{queries}_query", f"test_{queries}")]
    return _splits(root, parts, (277797, queries, gallery))


@frozen
class Cuhk03Picture:
    """An image in cuhk-03.mat, an HDF5 file: `kind` is "labeled" or "detected", the numbers count from 0."""

    file: Path
    kind: str
    pair: int
    person: int
    number: int

    @property
    def name(self) -> str:
        """As the authors of the new protocol call it: camera pair, person, view, number."""
        return f"{self.pair + 1}_{self.person + 1:03d}_{1 + self.number // 5}_{self.number + 1:02d}.png"

    def open(self) -> Image.Image:
        """Return the image."""
        import h5py

        with h5py.File(self.file) as mat:
            people = mat[mat[self.kind][0, self.pair]]
            pixels = np.asarray(mat[people[self.number, self.person]])  # (3, W, H): columns come first in Matlab
        return Image.fromarray(np.ascontiguousarray(pixels.transpose(2, 1, 0)))


_CUHK03 = {"labeled": (7368, 1400, 5328), "detected": (7365, 1400, 5332)}


def cuhk03(root: Path, boxes: str) -> Splits:
    """Read CUHK03 by its new protocol (Zhong et al. 2017), with people's `boxes` "labeled" or "detected".

    Images are read from `images_<boxes>/` if another toolbox has unpacked them, else from cuhk-03.mat itself, which
    takes h5py. Raises DataError for what is missing.
    """
    from scipy.io import loadmat

    config = root / f"cuhk03_new_protocol_config_{boxes}.mat"
    mat = root / "cuhk03_release" / "cuhk-03.mat"
    unpacked = root / f"images_{boxes}"
    require_folder(root, f"cuhk03_release/cuhk-03.mat and {config.name} of CUHK03")
    if not config.is_file():
        raise DataError(
            f"there is no file {config}; it is of the new protocol, https://github.com/zhunzhong07/person-re-ranking"
        )
    if not unpacked.is_dir():
        _require_h5(mat)
    split = loadmat(config)
    names = [str(entry[0]) for entry in split["filelist"].ravel()]
    labels = split["labels"].ravel()

    def read(key: str) -> list[Sample]:
        found = []
        for index in split[key].ravel().astype(int) - 1:
            pair, person, view, number = (int(part) for part in Path(names[index]).stem.split("_"))
            picture = Cuhk03Picture(mat, boxes, pair - 1, person - 1, number - 1)
            image: Any = unpacked / names[index] if unpacked.is_dir() else picture
            found.append(Sample(image, int(labels[index]), view - 1))
        return found

    parts = [read(key) for key in ("train_idx", "query_idx", "gallery_idx")]
    return _splits(root, parts, _CUHK03[boxes])


def _require_h5(mat: Path) -> None:
    if not mat.is_file():
        raise DataError(f"there is no file {mat}, nor a folder with its images")
    try:
        import h5py  # noqa: F401
    except ImportError:
        raise DataError(f'{mat} is an HDF5 file; to read it: pip install "reidcore[cuhk03]"') from None


def _halves(samples: Sequence[Sample], first: Iterable[int], root: Path, published: tuple[int, int]) -> Splits:
    """Train on the `first` classes; the images of the others look for each other."""
    known = set(first)
    train = [sample for sample in samples if sample.identity in known]
    test = [sample for sample in samples if sample.identity not in known]
    return Splits(train, test, test, _not_as_published(root, train, test, published))


def _not_as_published(
    root: Path, train: Sequence[Sample], test: Sequence[Sample], published: tuple[int, int]
) -> list[str]:
    return [
        f"{root}: found {len(part)} {what} images; published {count}"
        for part, what, count in ((train, "train", published[0]), (test, "test", published[1]))
        if count and len(part) != count
    ]


def cub200(root: Path) -> Splits:
    """Read CUB-200-2011: the first 100 classes train, the others test. Raises DataError for what is missing."""
    require_folder(root, "images/, images.txt and image_class_labels.txt of CUB_200_2011")
    files = {line[1]: line[2] for line in read_lines(root / "images.txt", r"(\d+) (\S+)", "'<number> <file>'")}
    labels = read_lines(root / "image_class_labels.txt", r"(\d+) (\d+)", "'<number> <class>'")
    if unknown := [line[1] for line in labels if line[1] not in files]:
        raise DataError(f"{root / 'image_class_labels.txt'}: image {unknown[0]} is not in images.txt")
    samples = [Sample(root / "images" / files[line[1]], int(line[2])) for line in labels]
    return _halves(samples, range(1, 101), root, (5864, 5924))


def cars196(root: Path) -> Splits:
    """Read Cars196: the first 98 classes train, the others test. Raises DataError for what is missing."""
    from scipy.io import loadmat

    require_folder(root, "car_ims/ and cars_annos.mat of Cars196")
    file = root / "cars_annos.mat"
    try:
        annotations = loadmat(file, squeeze_me=True)["annotations"]
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"cannot read {file}: {getattr(error, 'strerror', None) or error}") from None
    samples = [Sample(root / str(entry["relative_im_path"]), int(entry["class"])) for entry in annotations]
    return _halves(samples, range(1, 99), root, (8054, 8131))


def online_products(root: Path) -> Splits:
    """Read Stanford Online Products by its lists. Raises DataError for a missing list, and with all faulty lines."""
    require_folder(root, "Ebay_train.txt, Ebay_test.txt and the folders of Stanford_Online_Products")

    def read(name: str) -> list[Sample]:
        lines = read_lines(root / name, r"\d+ (\d+) \d+ (\S+)", "'<number> <class> <kind> <file>'", skip=1)
        return [Sample(root / line[2], int(line[1])) for line in lines]

    train, test = read("Ebay_train.txt"), read("Ebay_test.txt")
    return _halves([*train, *test], {sample.identity for sample in train}, root, (59551, 60502))


def in_shop(root: Path) -> Splits:
    """Read DeepFashion's in-shop clothes by `list_eval_partition.txt`. Raises DataError with all faulty lines."""
    require_folder(root, "list_eval_partition.txt and img/ of In-shop Clothes Retrieval")
    name = "list_eval_partition.txt"
    file = next((place for place in (root / name, root / "Eval" / name) if place.is_file()), root / name)
    lines = read_lines(file, r"(\S+)\s+id_(\d+)\s+(train|query|gallery)", "'<file> id_<number> <part>'", skip=2)
    parts: dict[str, list[Sample]] = {"train": [], "query": [], "gallery": []}
    for line in lines:
        parts[line[3]].append(Sample(root / line[1], int(line[2])))
    return _splits(root, list(parts.values()), (25882, 14218, 12612))
