"""Every network keeps the contract of backbones; of the deep ones the first stage, since exporting takes long."""

from reidcore.testing import contract

test_contract = contract(
    "resnest",
    options={
        "resnest50": {"base": 8, "ibn": "b", "non_local": [0, 2, 3, 0]},
        "resnest101": {"base": 8, "radix": 4, "ibn": "a", "stages": 1},
        "resnest200": {"base": 8, "radix": 1, "last_stride": 2, "stages": 1},
        "resnest269": {"base": 8, "non_local": [1, 0, 0, 0], "non_local_channels": 1, "stages": 1},
    },
)
