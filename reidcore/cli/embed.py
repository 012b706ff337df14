"""`reidcore embed`: write the embeddings of images to a file."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from reidcore.api import load_model
from reidcore.builtin.modules.datasets import find_images, label_by_name
from reidcore.reporting import Bar, Terminal, make_console
from reidcore.retrieval.store import refuse_existing


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("run", metavar="RUN", help="a run folder, or a file that `export` wrote")
    parser.add_argument("images", metavar="IMAGES", nargs="+", type=Path, help="images, and folders of images")
    parser.add_argument("-o", "--output", metavar="FILE", type=Path, required=True, help="a new file for `index`")
    parser.add_argument("--device", default="auto", help="'auto', 'cpu', 'cuda' or 'cuda:1' (default: auto)")
    parser.add_argument("--plugin", metavar="FILE.py", action="append", default=[], help="a plugin in one file")


def main(options: Namespace) -> int:
    """Embed the images."""
    console = make_console(stderr=True)
    refuse_existing(options.output)
    samples, note = label_by_name(find_images(options.images))
    embedder = load_model(options.run, options.device, options.plugin)
    Terminal(console, options.quiet).note(note)
    with Bar(console, options.quiet) as bar:
        embedder.write(samples, options.output, lambda done: bar("embedding", done, len(samples)))
    print(f"{options.output}: {len(samples)} embeddings of {embedder.dim} dimensions")
    return 0
