"""`reidcore import`: take over models of other programs."""

import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path

from reidcore.errors import ReidError
from reidcore.retrieval.store import refuse_existing

_RUNS = ("fastreid", "torchreid", "torchvision", "timm")
"""Whose files become runs."""


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "file",
        metavar="FILE",
        nargs="?",
        type=Path,
        help="a checkpoint or a file of weights; fastreid: also zoo:NAME, a published one; caffe: a .prototxt, its "
        ".caffemodel beside it",
    )
    parser.add_argument("--from", dest="kind", choices=[*_RUNS, "caffe"], help="whose file it is")
    parser.add_argument("-o", "--output", metavar="PLACE", type=Path, help="a new run folder; caffe: a new .onnx file")
    parser.add_argument("--config", metavar="FILE.yml", type=Path, help="fastreid: the checkpoint's configuration")
    parser.add_argument(
        "--config-only", metavar="FILE.yml", type=Path, help="print a configuration of FastReID as a recipe, no more"
    )
    parser.add_argument(
        "--set", metavar="KEY=VALUE", action="append", default=[], help="change one key of the run's recipe"
    )
    parser.add_argument("--plugin", metavar="FILE.py", action="append", default=[], help="a plugin in one file")


def main(options: Namespace) -> int:
    """Import, and say what came of it."""
    if options.config_only:
        _print_recipe(options.config_only)
        return 0
    if not (options.file and options.kind and options.output):
        raise ReidError(
            f"expected FILE --from {'|'.join(_RUNS)} -o RUN, FILE --from caffe -o FILE.onnx, or --config-only FILE.yml"
        )
    if options.config and options.kind != "fastreid":
        raise ReidError("--config is for checkpoints of FastReID")
    if options.kind in _RUNS:
        from reidcore import imports

        request = imports.Request(options.file, options.output, options.set, options.plugin, options.config)
        for line in getattr(imports, f"import_{options.kind}")(request):
            print(line)
        return 0
    from reidcore.export.caffe_reader import convert

    refuse_existing(options.output)
    if options.output.suffix != ".onnx":
        raise ReidError(f"cannot write {options.output}: what comes out is an .onnx file")
    graph = convert(options.file, options.output)
    inputs, outputs = (
        ", ".join(
            f"'{value.name}' " + "x".join(str(d.dim_param or d.dim_value) for d in value.type.tensor_type.shape.dim)
            for value in values
        )
        for values in (graph.graph.input, graph.graph.output)
    )
    print(f"{options.output}: takes {inputs}; gives {outputs}")
    return 0


def _print_recipe(file: Path) -> None:
    import tomli_w

    from reidcore.fastreid_config import read_config, to_recipe

    recipe, left = to_recipe(read_config(file), file.stem)
    print(f"# From FastReID's {file.name}.")
    for line in left:
        print(f"# No counterpart: {line}")
        print(f"no counterpart: {line}", file=sys.stderr)
    print()
    print(tomli_w.dumps(recipe), end="")
