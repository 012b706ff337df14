"""`reidcore import`: take over models of other programs."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from reidcore.errors import ReidError
from reidcore.retrieval.store import refuse_existing


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "file", metavar="FILE", type=Path, help="fastreid: a checkpoint; caffe: a .prototxt, its .caffemodel beside it"
    )
    parser.add_argument("--from", dest="kind", choices=["fastreid", "caffe"], required=True, help="whose file it is")
    parser.add_argument(
        "-o", "--output", metavar="PLACE", type=Path, required=True, help="fastreid: a new run folder; caffe: an .onnx"
    )
    parser.add_argument(
        "--set", metavar="KEY=VALUE", action="append", default=[], help="fastreid: change one key of the run's recipe"
    )
    parser.add_argument("--plugin", metavar="FILE.py", action="append", default=[], help="a plugin in one file")


def main(options: Namespace) -> int:
    """Import."""
    if options.kind == "fastreid":
        from reidcore.fastreid import import_fastreid

        for line in import_fastreid(options.file, options.output, options.set, options.plugin):
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
