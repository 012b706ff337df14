"""Published data sets in miniature: their layout, with the odd cases, and images of a few pixels."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from PIL import Image


def draw(root: Path, names: Iterable[str]) -> None:
    """Write a small image for each name."""
    for number, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 6, 3), 16 * number % 256, np.uint8)).save(root / name)


def write(root: Path, name: str, lines: Iterable[str]) -> None:
    """Write a list."""
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text("".join(f"{line}\n" for line in lines))


def market1501(root: Path) -> None:
    """Identity -1 is junk, 0 a distractor; the same person is on two cameras."""
    draw(root / "bounding_box_train", ["0002_c1s1_000451_03.jpg", "0002_c2s1_000551_01.jpg", "0007_c6s3_077419_03.jpg"])
    draw(root / "query", ["0001_c1s1_001051_00.jpg", "0003_c5s1_000001_00.jpg"])
    gallery = ["-1_c1s1_000401_03.jpg", "0000_c3s1_000151_01.jpg", "0001_c1s1_001051_03.jpg", "0001_c4s6_000810_02.jpg"]
    draw(root / "bounding_box_test", [*gallery, "0003_c2s1_000301_00.jpg"])
    draw(root / "images", ["0000_c2s3_000001_01.jpg", "-1_c1s1_000002_01.jpg"])


def dukemtmc(root: Path) -> None:
    """Cameras count from 1 to 8."""
    draw(root / "bounding_box_train", ["0001_c2_f0046182.jpg", "0001_c8_f0046302.jpg"])
    draw(root / "query", ["0005_c2_f0046985.jpg"])
    draw(root / "bounding_box_test", ["0003_c1_f0044158.jpg", "0005_c5_f0051341.jpg"])


def msmt17(root: Path) -> None:
    """The lists of the test count identities from 0 again."""
    lists = {
        "train": ["0000/0000_000_01_0303morning_0015_0.jpg 0", "0001/0001_002_05_0303noon_0000.jpg 1"],
        "val": ["0001/0001_005_14_0303noon_0001.jpg 1"],
        "query": ["0000/0000_000_02_0302morning_0030_0.jpg 0"],
        "gallery": ["0000/0000_001_15_0302morning_0034_0.jpg 0", "0001/0001_000_02_0302noon_0000_0.jpg 1"],
    }
    for name, lines in lists.items():
        write(root, f"list_{name}.txt", lines)
        folder = root / ("train" if name in ("train", "val") else "test")
        draw(folder, [line.split()[0] for line in lines])


def cuhk03(root: Path) -> None:
    """Two camera pairs in cuhk-03.mat, in which Matlab puts columns first; empty cells are people seen once."""
    import h5py
    from scipy.io import savemat

    (root / "cuhk03_release").mkdir(parents=True)
    with h5py.File(root / "cuhk03_release" / "cuhk-03.mat", "w") as mat:
        for kind, shade in (("labeled", 0), ("detected", 100)):
            pairs = mat.create_dataset(kind, (1, 2), dtype=h5py.ref_dtype)
            for pair in range(2):
                people = mat.create_dataset(f"{kind}{pair}", (10, 2), dtype=h5py.ref_dtype)
                pairs[0, pair] = people.ref
                for person in range(2):
                    for number in range(10):
                        pixels = np.zeros((3, 4, 9), np.uint8)  # 9 rows, 4 columns
                        pixels[:, 1, 2] = shade + 40 * pair + 20 * person + number
                        picture = mat.create_dataset(f"{kind}{pair}-{person}-{number}", data=pixels)
                        people[number, person] = picture.ref
    names = ["1_001_1_01.png", "1_001_2_06.png", "1_002_1_02.png", "1_002_2_10.png", "2_001_2_07.png"]
    for kind in ("labeled", "detected"):
        cells = np.empty((len(names), 1), object)
        cells[:, 0] = names
        savemat(
            root / f"cuhk03_new_protocol_config_{kind}.mat",
            {
                "filelist": cells,
                "labels": np.array([[3, 3, 5, 5, 9]]).T,
                "train_idx": np.array([[1, 2]]).T,
                "query_idx": np.array([[3]]).T,
                "gallery_idx": np.array([[4, 5]]).T,
            },
        )


def veri776(root: Path) -> None:
    """Cameras have three digits."""
    draw(root / "image_train", ["0001_c001_00016450_0.jpg", "0001_c020_00016460_0.jpg"])
    draw(root / "image_query", ["0002_c002_00030600_0.jpg"])
    draw(root / "image_test", ["0002_c002_00030605_1.jpg", "0002_c011_00031000_0.jpg", "0005_c003_00031055_0.jpg"])


def vehicleid(root: Path) -> None:
    """One list of test images, of which the protocol draws; identities of training and test share numbers' range."""
    lists = {"train_list": ["0000001 11", "0000002 11"], "test_list_800": ["0000003 7", "0000004 7", "0000005 8"]}
    for name, lines in lists.items():
        write(root, f"train_test_split/{name}.txt", lines)
        draw(root / "image", [f"{line.split()[0]}.jpg" for line in lines])


def veri_wild(root: Path) -> None:
    """Cameras stand in vehicle_info.txt, which begins with a heading."""
    images = {"00001/000001": 5, "00001/000002": 9, "30001/000003": 12, "30001/000004": 12, "30001/000005": 40}
    write(
        root,
        "train_test_split/vehicle_info.txt",
        ["id/image;Camera ID;Time;Model;Type;Color", *(f"{n};{c};2018-03-11;A;B;C" for n, c in images.items())],
    )
    names = list(images)
    for name, part in (("train_list", names[:2]), ("test_3000_query", names[2:3]), ("test_3000", names[3:])):
        write(root, f"train_test_split/{name}.txt", part)
    draw(root / "images", [f"{name}.jpg" for name in images])


def cub200(root: Path) -> None:
    """Classes up to 100 train."""
    files = ["001.Albatross/a_1.jpg", "100.Pelican/b_2.jpg", "101.White_Pelican/c_3.jpg", "101.White_Pelican/d_4.jpg"]
    write(root, "images.txt", [f"{n} {name}" for n, name in enumerate(files, start=1)])
    write(root, "image_class_labels.txt", [f"{n} {int(name[:3])}" for n, name in enumerate(files, start=1)])
    draw(root / "images", files)


def cars196(root: Path) -> None:
    """Classes up to 98 train."""
    from scipy.io import savemat

    rows = [
        ("car_ims/000001.jpg", 1),
        ("car_ims/000002.jpg", 98),
        ("car_ims/000003.jpg", 99),
        ("car_ims/000004.jpg", 99),
    ]
    root.mkdir(parents=True, exist_ok=True)
    annotations = np.array(rows, dtype=[("relative_im_path", object), ("class", object)])
    savemat(root / "cars_annos.mat", {"annotations": annotations})
    draw(root, [name for name, _ in rows])


def online_products(root: Path) -> None:
    """The lists begin with a heading."""
    heading = "image_id class_id super_class_id path"
    write(root, "Ebay_train.txt", [heading, "1 1 1 bicycle_final/111_0.JPG", "2 1 1 bicycle_final/111_1.JPG"])
    write(root, "Ebay_test.txt", [heading, "3 9 1 sofa_final/222_0.JPG", "4 9 1 sofa_final/222_1.JPG"])
    draw(root, ["bicycle_final/111_0.JPG", "bicycle_final/111_1.JPG", "sofa_final/222_0.JPG", "sofa_final/222_1.JPG"])


def in_shop(root: Path) -> None:
    """The list begins with a count and a heading, and is set in columns."""
    rows = [
        ("img/WOMEN/Dresses/id_00000002/02_1_front.jpg", "id_00000002", "train"),
        ("img/WOMEN/Dresses/id_00000007/04_1_front.jpg", "id_00000007", "query"),
        ("img/WOMEN/Dresses/id_00000007/04_2_side.jpg", "id_00000007", "gallery"),
    ]
    lines = [f"{name:70}{item:15}{part}" for name, item, part in rows]
    write(root, "Eval/list_eval_partition.txt", ["3", "image_name item_id evaluation_status", *lines])
    draw(root, [name for name, _, _ in rows])


def airport(root: Path) -> None:
    """Numbers below 11001 and above 401999 are detections of nobody; paths are written as on Windows."""
    files = ["cam1/11001/a.jpg", "cam3/11001/b.jpg", "cam1/10999/c.jpg", "cam1/402000/d.jpg", "cam1/401999/e.jpg"]
    write(root, "filepath.txt", [name.replace("/", "\\") for name in files])
    draw(root, files)


def files(*names: str) -> Callable[[Path], None]:
    """Return what draws images of these names."""
    return lambda root: draw(root, names)


MAKE: dict[str, Callable[[Path], None]] = {
    "market1501": market1501,
    "dukemtmc": dukemtmc,
    "msmt17": msmt17,
    "cuhk03": cuhk03,
    "veri776": veri776,
    "vehicleid": vehicleid,
    "veri-wild": veri_wild,
    "cub200": cub200,
    "cars196": cars196,
    "online-products": online_products,
    "in-shop": in_shop,
    "airport": airport,
    "caviar4reid": files("0001001.jpg", "0001002.jpg", "0010001.jpg"),
    "cuhk-sysu": files("cropped_images/p1_s15536_1.jpg", "cropped_images/p1_s2.jpg", "cropped_images/p20_s3_1.jpg"),
    "grid": files("images/0001_1_25004_107_32_106_221.jpeg", "images/0001_2_1.jpeg", "images/0000_5_2.jpeg"),
    "ilids": files("person001/cam1_a.png", "person001/cam2_b.png", "person002/cam1_c.png"),
    "lpw": files("scen1/view1/1/0.jpg", "scen1/view2/1/1.jpg", "scen2/view1/1/0.jpg", "scen4/view1/1/0.jpg"),
    "3dpes": files("1/1_01.bmp", "1/1_02.bmp", "10/10_01.bmp"),
    "pku-reid": files("001_1_01.png", "001_2_01.png", "002_1_01.png"),
    "prai1581": files("images/00000000_0010_00000000.jpg", "images/00000000_0003_1.jpg", "images/00000001_0003_1.jpg"),
    "prid2011": files("slim_train/cam_a/person_0001/a_0001.png", "slim_train/cam_b/person_0001/b_0001.png"),
    "saivt": files("cropped_images/001/0001-001-01-0001.jpeg", "cropped_images/001/0001-001-08-0001.jpeg"),
    "sensereid": files("test_gallery/00001_0.jpg", "test_prob/00001_1.jpg", "test_prob/00002_1.jpg"),
    "shinpuhkan": files("a/001_01_15_0001.jpg", "b/001_02_16_0002.jpg", "b/002_02_16_0003.jpg"),
    "sysu-mm01": files("cam1/0001/0001.jpg", "cam2/0001/0001.jpg", "cam3/0001/0001.jpg", "cam5/0002/0001.jpg"),
    "thermalworld": files("1/a.jpg", "1/b.jpg", "2/a.jpg"),
    "viper": files("cam_a/000_45.bmp", "cam_b/000_90.bmp", "cam_a/001_0.bmp"),
    "wildtrack": files("crop/0/0_00000000.png", "crop/0/3_00000005.png", "crop/12/0_00000000.png"),
}
