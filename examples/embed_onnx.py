"""Embed images with an exported ONNX file: onnxruntime, numpy and Pillow are all that it takes.

python embed_onnx.py model.onnx IMAGE... -o embeddings.npy
"""

import argparse
import json

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("model")
parser.add_argument("images", nargs="+")
parser.add_argument("-o", "--output", default="embeddings.npy")
options = parser.parse_args()

session = onnxruntime.InferenceSession(options.model)
about = {name: json.loads(text) for name, text in session.get_modelmeta().custom_metadata_map.items()}
size = (about["reidcore.width"], about["reidcore.height"])


def read(file):
    with Image.open(file) as image:
        return np.asarray(ImageOps.exif_transpose(image).convert("RGB").resize(size, Image.Resampling.BICUBIC))


rows = []
for first in range(0, len(options.images), 32):
    images = np.stack([read(file) for file in options.images[first : first + 32]])
    (embeddings,) = session.run(["embedding"], {"images": images})
    if about["reidcore.flip"]:  # as in evaluation: the mean with the mirror image's
        embeddings = (embeddings + session.run(["embedding"], {"images": images[:, :, ::-1].copy()})[0]) / 2
    rows.append(embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True))
np.save(options.output, np.concatenate(rows))
