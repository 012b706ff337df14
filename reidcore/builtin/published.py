"""Published data sets: each knows its layout, its counts, how it is compared, and where a person gets it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar, Literal

from attrs import frozen

from reidcore.component import Component, option
from reidcore.hookspecs import hookimpl
from reidcore.types import Splits


@frozen(kw_only=True)
class _Published:
    homepage: ClassVar[str]

    def build(self) -> Splits:
        from reidcore.builtin.modules.datasets import MissingData

        try:
            return self.read()
        except MissingData as error:
            raise MissingData(f"{error}; it is to be had from {self.homepage}") from None

    def read(self) -> Splits:
        raise NotImplementedError


@frozen(kw_only=True)
class Market1501(_Published):
    """Market-1501 (Zheng et al. 2015): 751 + 750 people, 6 cameras."""

    homepage = "https://zheng-lab.cecs.anu.edu.au/Project/project_reid.html"

    root: Path = option(help="folder that holds bounding_box_train/, query/ and bounding_box_test/")
    distractors: bool = option(False, help="put the 500,000 images of nobody, in images/, into the gallery")

    def read(self) -> Splits:
        from reidcore.builtin.modules.published import market1501

        return market1501(self.root, self.distractors)


@frozen(kw_only=True)
class DukeMTMC(_Published):
    """DukeMTMC-reID (Ristani et al. 2016, Zheng et al. 2017): 702 + 702 people, 8 cameras."""

    homepage = "https://exposing.ai/duke_mtmc/, which says why its authors withdrew it"

    root: Path = option(help="folder that holds bounding_box_train/, query/ and bounding_box_test/")

    def read(self) -> Splits:
        from reidcore.builtin.modules.published import dukemtmc

        return dukemtmc(self.root)


@frozen(kw_only=True)
class MSMT17(_Published):
    """MSMT17, first or second version (Wei et al. 2018): 1,041 + 3,060 people, 15 cameras."""

    homepage = "https://www.pkuvmc.com/dataset.html"

    root: Path = option(help="folder that holds the images and list_train.txt, list_query.txt, …")
    validation: bool = option(False, help="train on the images of list_val.txt too")

    def read(self) -> Splits:
        from reidcore.builtin.modules.published import msmt17

        return msmt17(self.root, self.validation)


@frozen(kw_only=True)
class CUHK03(_Published):
    """CUHK03 by its new protocol (Li et al. 2014, Zhong et al. 2017): 767 + 700 people, 2 cameras."""

    homepage = (
        "http://www.ee.cuhk.edu.hk/~xgwang/CUHK_identification.html, and the protocol from "
        "https://github.com/zhunzhong07/person-re-ranking"
    )

    root: Path = option(help="folder that holds cuhk03_release/ and cuhk03_new_protocol_config_….mat")
    boxes: Literal["labeled", "detected"] = option("labeled", help="people's boxes, drawn by hand or detected")

    def read(self) -> Splits:
        from reidcore.builtin.modules.published import cuhk03

        return cuhk03(self.root, self.boxes)


@frozen(kw_only=True)
class VeRi776(_Published):
    """VeRi-776 (Liu et al. 2016): 576 + 200 vehicles, 20 cameras."""

    homepage = "https://github.com/JDAI-CV/VeRidataset"

    root: Path = option(help="folder that holds image_train/, image_query/ and image_test/")

    def read(self) -> Splits:
        from reidcore.builtin.modules.published import veri776

        return veri776(self.root)


@frozen(kw_only=True)
class VehicleID(_Published):
    """VehicleID (Liu et al. 2016): 13,164 vehicles to train on, and 800, 1,600 or 2,400 others."""

    homepage = "https://pkuml.org/resources/pku-vehicleid.html"
    protocol: ClassVar = "vehicleid"

    root: Path = option(help="folder that holds image/ and train_test_split/")
    size: Literal["small", "medium", "large", "all"] = option("small", help="of the test: 800, 1,600, 2,400 or all")

    def read(self) -> Splits:
        from reidcore.builtin.modules.published import vehicleid

        return vehicleid(self.root, self.size)


@frozen(kw_only=True)
class VeRiWild(_Published):
    """VERI-Wild (Lou et al. 2019): 30,671 vehicles to train on, and 3,000, 5,000 or 10,000 others, 174 cameras."""

    homepage = "https://github.com/PKU-IMRE/VERI-Wild"

    root: Path = option(help="folder that holds images/ and train_test_split/")
    size: Literal["small", "medium", "large"] = option("small", help="of the test: 3,000, 5,000 or 10,000 vehicles")

    def read(self) -> Splits:
        from reidcore.builtin.modules.published import veri_wild

        return veri_wild(self.root, self.size)


@frozen(kw_only=True)
class CUB200(_Published):
    """CUB-200-2011 (Wah et al. 2011): 100 + 100 kinds of birds."""

    homepage = "https://www.vision.caltech.edu/datasets/cub_200_2011/"
    protocol: ClassVar = "all-cameras"

    root: Path = option(help="the folder CUB_200_2011")

    def read(self) -> Splits:
        from reidcore.builtin.modules.published import cub200

        return cub200(self.root)


@frozen(kw_only=True)
class Cars196(_Published):
    """Cars196 (Krause et al. 2013): 98 + 98 models of cars."""

    homepage = "https://ai.stanford.edu/~jkrause/cars/car_dataset.html"
    protocol: ClassVar = "all-cameras"

    root: Path = option(help="folder that holds car_ims/ and cars_annos.mat")

    def read(self) -> Splits:
        from reidcore.builtin.modules.published import cars196

        return cars196(self.root)


@frozen(kw_only=True)
class OnlineProducts(_Published):
    """Stanford Online Products (Song et al. 2016): 11,318 + 11,316 products."""

    homepage = "https://cvgl.stanford.edu/projects/lifted_struct/"
    protocol: ClassVar = "all-cameras"

    root: Path = option(help="the folder Stanford_Online_Products")

    def read(self) -> Splits:
        from reidcore.builtin.modules.published import online_products

        return online_products(self.root)


@frozen(kw_only=True)
class InShop(_Published):
    """DeepFashion's in-shop clothes (Liu et al. 2016): 3,997 + 3,985 items."""

    homepage = "http://mmlab.ie.cuhk.edu.hk/projects/DeepFashion/InShopRetrieval.html"
    protocol: ClassVar = "in-shop"

    root: Path = option(help="folder that holds img/ and list_eval_partition.txt")

    def read(self) -> Splits:
        from reidcore.builtin.modules.published import in_shop

        return in_shop(self.root)


@frozen(kw_only=True)
class Airport(_Published):
    """Airport (Karanam et al. 2018), to train on: people by 6 cameras of one airport."""

    homepage = "https://alert.northeastern.edu"

    root: Path = option(help="folder that holds filepath.txt and a folder for each camera")

    def read(self) -> Splits:
        from reidcore.builtin.modules.published import airport

        return airport(self.root)


def _people(
    name: str,
    title: str,
    homepage: str,
    layout: str,
    pattern: str,
    published: tuple[int, int] | None = None,
) -> Component:
    """Return a set of people to train on, whose paths say who they are."""

    def read(self: _Published) -> Splits:
        from reidcore.builtin.modules.published import people

        return people(self.root, pattern, layout, published)  # type: ignore[attr-defined]

    fields = {
        "__doc__": f"{title}: people to train on.",
        "__annotations__": {"root": Path},
        "homepage": homepage,
        "root": option(help=f"folder that holds {layout}"),
        "read": read,
    }
    return Component(name=name, config=frozen(kw_only=True)(type(title.split()[0].strip(","), (_Published,), fields)))


_PEOPLE = (
    _people(
        "caviar4reid",
        "CAVIAR4REID (Cheng et al. 2011)",
        "https://lorisbaz.github.io/caviar4reid.html",
        "files <identity><number>.jpg, with four digits of identity",
        r"(?P<identity>\d{4})\d*\.jpg",
        (72, 1220),
    ),
    _people(
        "cuhk-sysu",
        "CUHK-SYSU (Xiao et al. 2017), cut out",
        "http://www.ee.cuhk.edu.hk/~xgwang/PS/dataset.html",
        "cropped_images/p<identity>_s<scene>….jpg",
        r"cropped_images/p(?P<identity>\d+)_s\d.*\.jpg",
    ),
    _people(
        "grid",
        "GRID (Loy et al. 2010), without the images of nobody",
        "https://personal.ie.cuhk.edu.hk/~ccloy/downloads_qmul_underground_reid.html",
        "images/<identity>_<camera>_….jpeg",
        r"images/(?P<identity>(?!0+_)\d+)_(?P<camera>\d+)_.*\.jpeg",
    ),
    _people(
        "ilids",
        "iLIDS-VID (Wang et al. 2014)",
        "https://xiatian-zhu.github.io/downloads_qmul_iLIDS-VID_ReID_dataset.html",
        "<identity>/<camera>_….png",
        r"(?P<identity>[^/]+)/(?P<camera>[^/_]+)_[^/]*\.png",
    ),
    _people(
        "lpw",
        "LPW (Song et al. 2018)",
        "http://www.liuyu.us/dataset/lpw/index.html",
        "scen1/ to scen3/ with <camera>/<identity>/….jpg",
        r"(?P<scene>scen[123]/)(?P<camera>[^/]+)/(?P<identity>[^/]+)/[^/]+\.jpg",
    ),
    _people(
        "3dpes",
        "3DPeS (Baltieri et al. 2011)",
        "https://www.openvisor.org/3dpes.asp",
        "<identity>/….bmp",
        r"(?P<identity>[^/]+)/[^/]+\.bmp",
        (192, 1011),
    ),
    _people(
        "pku-reid",
        "PKU-Reid (Ma et al. 2016)",
        "https://github.com/charliememory/PKU-Reid-Dataset",
        "files <identity>_<camera>_….png",
        r"(?P<identity>\d+)_(?P<camera>\d+)_[^/]*\.png",
        (114, 1824),
    ),
    _people(
        "prai1581",
        "PRAI-1581 (Zhang et al. 2020), seen from drones",
        "https://github.com/stormyoung/PRAI-1581",
        "images/<identity>_<camera>_….jpg",
        r"images/(?P<identity>\d+)_(?P<camera>\d+)_[^/]*\.jpg",
        (1581, 39461),
    ),
    _people(
        "prid2011",
        "PRID 2011 (Hirzer et al. 2011)",
        "https://www.tugraz.at/institute/icg/research/team-bischof/lrs/downloads/prid11/",
        "slim_train/ with person_<identity>/<camera>_….png at any depth",
        r"slim_train/(?:.*/)?[^/_]*_(?P<identity>\d+)/(?P<camera>[^/_]+)_[^/]*\.png",
    ),
    _people(
        "saivt",
        "SAIVT-SoftBio (Bialkowski et al. 2012)",
        "https://research.qut.edu.au/saivt/databases/saivt-softbio-database/",
        "cropped_images/<identity>/…-…-<camera>-….jpeg",
        r"cropped_images/(?P<identity>[^/]+)/[^/-]*-[^/-]*-(?P<camera>[^/-]+)-[^/]*\.jpeg",
    ),
    _people(
        "sensereid",
        "SenseReID (Zhao et al. 2017)",
        "https://github.com/yokattame/SpindleNet",
        "test_gallery/ and test_prob/ with <identity>_<camera>.jpg",
        r"test_(?:gallery|prob)/(?P<identity>\d+)_(?P<camera>\d+)[^/]*\.jpg",
        (1717, 4428),
    ),
    _people(
        "shinpuhkan",
        "Shinpuhkan2014 (Kawanishi et al. 2014)",
        "http://www.mm.media.kyoto-u.ac.jp/en/datasets/shinpuhkan/",
        "files <identity>_<number>_<camera>_….jpg at any depth",
        r"(?:.*/)?(?P<identity>\d+)_[^/_]+_(?P<camera>[^/_]+)[^/]*\.jpg",
    ),
    _people(
        "sysu-mm01",
        "SYSU-MM01 (Wu et al. 2017), by its four cameras of visible light",
        "https://github.com/wuancong/SYSU-MM01",
        "cam1/, cam2/, cam4/ and cam5/ with <identity>/….jpg",
        r"cam(?P<camera>[1245])/(?P<identity>\d+)/[^/]+\.jpg",
    ),
    _people(
        "thermalworld",
        "ThermalWorld (Kniaz et al. 2018), its visible images",
        "https://github.com/vlkniaz/ThermalGAN",
        "<identity>/….jpg",
        r"(?P<identity>[^/]+)/[^/]+\.jpg",
    ),
    _people(
        "viper",
        "VIPeR (Gray and Tao 2008)",
        "https://vision.soe.ucsc.edu/node/178",
        "cam_a/ and cam_b/ with <identity>_<angle>.bmp",
        r"cam_(?P<camera>[ab])/(?P<identity>\d+)_[^/]*\.bmp",
        (632, 1264),
    ),
    _people(
        "wildtrack",
        "WILDTRACK (Chavdarova et al. 2018), cut out",
        "https://www.epfl.ch/labs/cvlab/data/data-wildtrack/",
        "crop/<identity>/<camera>_….png",
        r"crop/(?P<identity>[^/]+)/(?P<camera>[^/_]+)_[^/]*\.png",
        (313, 33979),
    ),
)


@hookimpl
def reidcore_datasets() -> Iterator[Component]:
    """Offer the data sets that the literature compares on, and people to train on."""
    yield Component(name="market1501", config=Market1501)
    yield Component(name="dukemtmc", config=DukeMTMC)
    yield Component(name="msmt17", config=MSMT17)
    yield Component(name="cuhk03", config=CUHK03)
    yield Component(name="veri776", config=VeRi776)
    yield Component(name="vehicleid", config=VehicleID)
    yield Component(name="veri-wild", config=VeRiWild)
    yield Component(name="cub200", config=CUB200)
    yield Component(name="cars196", config=Cars196)
    yield Component(name="online-products", config=OnlineProducts)
    yield Component(name="in-shop", config=InShop)
    yield Component(name="airport", config=Airport)
    yield from _PEOPLE
