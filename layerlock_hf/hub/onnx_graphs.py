"""Graphs in ONNX, and smaller ones made of them."""

from pathlib import Path

import torch

from .graphs import INPUT, Form, Run, quiet


OPSET = 20  # the first with GELU
DATA = ".data"  # of a file beside the graph, with weights of more than a gigabyte
# Angles of rotary positions reach the length of the grid, where half precision is off by 1%
IN_FLOAT32 = ("Cos", "Sin")


def write_onnx(program: torch.export.ExportedProgram, output: str, path: Path, external_data: bool | None = None):
    """Put a traced model into a file.

    Args:
        output: name of its output.
        external_data: whether the weights go into a file of their own beside it; by default if they are large. A file
            of ONNX cannot exceed 2 GB.
    """
    with quiet():
        graph = torch.onnx.export(
            program,
            input_names=[INPUT],
            output_names=[output],
            opset_version=OPSET,
            dynamic_shapes=({0: "batch"},),  # the name of the open dimension
            verbose=False,
        )
        graph.save(path, external_data=external_data)


def load_onnx(path: Path) -> Run:
    """What runs a file, on the CPU, wherever else it could."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors. Warnings are of kernels for half precision that the CPU lacks
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda clips: torch.from_numpy(session.run(None, {INPUT: clips.numpy()})[0])


def has_data(path: Path) -> bool:
    """Whether the weights of a graph lie in a file of their own."""
    return path.with_name(path.name + DATA).is_file()


def to_float16(path: Path, target: Path):
    """Write a graph in half precision, with inputs and outputs in float32."""
    import onnx
    from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16

    with quiet():
        # By its path: the types of what is computed are then worked out for large graphs, too
        graph = convert_float_to_float16(
            str(path), keep_io_types=True, op_block_list=[*DEFAULT_OP_BLOCK_LIST, *IN_FLOAT32]
        )
    onnx.save(graph, target, save_as_external_data=has_data(path), location=target.name + DATA)


def to_int8(path: Path, target: Path):
    """Write a graph whose products with weights are of 8-bit integers: weights with a scale per column, activations
    with one that is measured while it runs."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with quiet():
        quantize_dynamic(
            path,
            target,
            op_types_to_quantize=["MatMul", "Gemm"],
            per_channel=True,
            weight_type=QuantType.QInt8,
            use_external_data_format=has_data(path),
        )


def _snippet(shape: tuple[int, ...], output: str) -> str:
    return f"""import numpy as np
import onnxruntime

session = onnxruntime.InferenceSession("{ONNX.file}", providers=["CPUExecutionProvider"])
frames = np.random.randint(0, 256, {(2, *shape)}, dtype=np.uint8)  # yours: clips of RGB frames
clips = frames.astype(np.float32) / 255
({output},) = session.run(["{output}"], {{"{INPUT}": clips}})
print({output}.shape)
"""


ONNX = Form(
    "ONNX",
    "model.onnx",
    write_onnx,
    load_onnx,
    _snippet,
    packages=("onnx", "onnxruntime", "onnxscript"),
    extra="onnx",
    variants={"float16": to_float16, "int8": to_int8},
    details={"opset": OPSET},
)
