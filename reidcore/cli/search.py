"""`reidcore search`: find the images of an index that are nearest to others."""

import json
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from reidcore.api import load_model
from reidcore.builtin.modules.datasets import find_images
from reidcore.cli.listing import print_columns
from reidcore.reporting import Bar, make_console
from reidcore.retrieval.index import Index
from reidcore.retrieval.sheet import check_sheet, draw_sheet
from reidcore.types import UNKNOWN


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("index", metavar="INDEX", help="a folder that `index` made")
    parser.add_argument("images", metavar="IMAGE", nargs="+", type=Path, help="what to look for: images, and folders")
    parser.add_argument(
        "--run",
        metavar="RUN",
        required=True,
        help="the run folder, or exported file, of the index's embeddings",
    )
    parser.add_argument("-k", type=int, default=10, help="how many to find for each image (default: 10)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--sheet", metavar="FILE", type=Path, help="also draw a row of pictures for each image")
    parser.add_argument("--device", default="auto", help="'auto', 'cpu', 'cuda' or 'cuda:1' (default: auto)")
    parser.add_argument("--plugin", metavar="FILE.py", action="append", default=[], help="a plugin in one file")


def main(options: Namespace) -> int:
    """Search, and show what was found."""
    if options.sheet:
        check_sheet(options.sheet)
    files = find_images(options.images)
    index = Index.open(options.index)
    embedder = load_model(options.run, options.device, options.plugin)
    index.require_model(embedder.fingerprint, options.run)
    with Bar(make_console(stderr=True), options.quiet) as bar:
        embeddings = embedder.embed(files, lambda done: bar("embedding", done, len(files)))
    found = search(index, embeddings, files, options.k)
    if options.json:
        print(json.dumps(found, indent=2))
    else:
        _print(found)
    if options.sheet:
        draw_sheet(found, options.sheet)
    return 0


def search(index: Index, embeddings: Any, files: Sequence[Path], k: int) -> list[dict[str, Any]]:
    """Return for each file `{"query": path, "hits": [{"rank", "distance", "identity", "camera", "path"}]}`.

    Identities and cameras that are not known are -1.
    """
    return [
        {
            "query": str(file),
            "hits": [
                {
                    "rank": rank,
                    "distance": round(distance, 6),
                    "identity": int(index.identities[row]),
                    "camera": int(index.cameras[row]),
                    "path": index.paths[row],
                }
                for rank, (row, distance) in enumerate(zip(rows.tolist(), distances.tolist(), strict=True), start=1)
                if row >= 0
            ],
        }
        for file, rows, distances in zip(files, *index.search(embeddings, k), strict=True)
    ]


def _print(found: Sequence[dict[str, Any]]) -> None:
    for number, item in enumerate(found):
        print(f"{chr(10) if number else ''}{item['query']}")
        rows = [("RANK", "DISTANCE", "IDENTITY", "CAMERA", "PATH")]
        for hit in item["hits"]:
            identity, camera = ("-" if hit[key] == UNKNOWN else str(hit[key]) for key in ("identity", "camera"))
            rows.append((str(hit["rank"]), f"{hit['distance']:.4f}", identity, camera, hit["path"]))
        print_columns(rows)
