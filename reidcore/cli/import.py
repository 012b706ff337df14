"""`reidcore import`: make a model of another program's files."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from reidcore.errors import ReidError
from reidcore.retrieval.store import refuse_existing


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("file", metavar="FILE", type=Path, help="caffe: a .prototxt with its .caffemodel beside it")
    parser.add_argument("--from", dest="kind", choices=["caffe"], required=True, help="whose file it is")
    parser.add_argument("-o", "--output", metavar="FILE", type=Path, required=True, help="a new .onnx file")


def main(options: Namespace) -> int:
    """Import."""
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
