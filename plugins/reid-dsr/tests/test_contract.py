from pathlib import Path
from tempfile import TemporaryDirectory

from PIL import Image

from reidcore.testing import contract

_FOLDER = TemporaryDirectory()
ROOT = Path(_FOLDER.name)
for folder in ("partial_body_images", "whole_body_images", "query", "gallery"):
    (ROOT / folder).mkdir()
    for identity in (1, 2):
        Image.new("RGB", (8, 16)).save(ROOT / folder / f"{identity:03d}_01.png")

test_contract = contract(
    "dsr",
    options={
        "aggregator-dsr": {"windows": [1, 2], "stride": 1},
        "postprocessor-dsr": {"k": 15},
        **{name: {"root": str(ROOT)} for name in ("partial-reid", "partial-ilids", "occluded-reid")},
    },
    extras={"cells": (5, 12), "weights": (5,)},
)
