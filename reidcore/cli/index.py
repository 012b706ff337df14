"""`reidcore index`: make files of embeddings searchable."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from reidcore.errors import ReidError
from reidcore.reporting import Bar, make_console
from reidcore.retrieval.index import KINDS, Index


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("files", metavar="FILE", nargs="+", type=Path, help="files that `embed` wrote, of one model")
    parser.add_argument("-o", "--output", metavar="INDEX", type=Path, required=True, help="a new folder")
    parser.add_argument("--append", action="store_true", help="add to the index that is there")
    parser.add_argument(
        "--kind",
        choices=KINDS,
        help="flat: compare with all; hnsw: walk a graph; ivf-sq: look into lists of vectors; ivf-pq: look into lists "
        "of codes that take an eighth of the memory, and at vectors on the disk (default: by size)",
    )


def main(options: Namespace) -> int:
    """Build or extend the index."""
    if options.append and options.kind:
        raise ReidError("an index keeps its kind; leave out --kind, or --append")
    with Bar(make_console(stderr=True), options.quiet) as bar:
        if options.append:
            index = Index.open(options.output).append(options.files, bar)
        else:
            index = Index.build(options.files, options.output, options.kind, bar)
    print(f"{options.output}: {index.describe()}")
    return 0
