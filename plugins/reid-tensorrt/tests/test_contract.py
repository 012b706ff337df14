"""The exporter keeps the contract; the proof itself where TensorRT and a GPU are there."""

import importlib.util

import torch

from reidcore.testing import contract

HERE = importlib.util.find_spec("tensorrt") is not None and torch.cuda.is_available()

test_contract = contract(
    "tensorrt",
    expected_failures={} if HERE else {"tensorrt-artifact_computes_what_the_model_does": "no TensorRT, or no GPU"},
)
