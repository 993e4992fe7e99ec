"""An ONNX file with the inputs and outputs of YuNet that finds red squares: what `FaceDetectorYN` does is real.

Every cell of 8, 16 and 32 pixels has a score and an objectness, a box and five landmarks, as YuNet's have. Here the
score is how much redder than green and blue the cell is, and only cells of 32 pixels are ever sure: they say a box of
64 pixels about their middle, with landmarks at fixed places in it.
"""

import math
import struct
from collections.abc import Sequence
from pathlib import Path

STRIDES = (8, 16, 32)
EYES_DOWN = 4
"""Pixels by which the eye on the right lies below the one on the left."""
LANDMARKS = ((-16, -12), (16, -12 + EYES_DOWN), (0, 0), (-10, 16), (10, 16))
"""Pixels from the middle of the cell."""
_FLOAT, _INT64, _INTS = 1, 7, 7


def write_tiny_yunet(path: Path) -> Path:
    """Write the model."""
    nodes, weights, outputs = [], [], []
    weights.append(_tensor("order", [3], struct.pack("<3q", 1, -1, 1), _INT64))
    for stride in STRIDES:
        pool = {"kernel_shape": [stride, stride], "strides": [stride, stride]}
        nodes.append(_node("AveragePool", ["input"], f"cells_{stride}", pool))
        sure = 1 / 255 if stride == 32 else 0.0
        redness = [-sure, -sure, sure]  # the network sees blue, green, red
        middle = [0.5, 0.5, math.log(64 / stride), math.log(64 / stride)]
        points = [0.5 + value / stride for point in LANDMARKS for value in point]
        heads = {"cls": ([redness], [0.0]), "obj": ([redness], [0.0])}
        heads |= {"bbox": ([[0.0] * 3] * 4, middle), "kps": ([[0.0] * 3] * 10, points)}
        for name, (matrix, bias) in heads.items():
            head, count = f"{name}_{stride}", len(bias)
            flat = [value for row in matrix for value in row]
            weights.append(_tensor(f"{head}_w", [count, 3, 1, 1], struct.pack(f"<{len(flat)}f", *flat), _FLOAT))
            weights.append(_tensor(f"{head}_b", [count], struct.pack(f"<{count}f", *bias), _FLOAT))
            weights.append(_tensor(f"{head}_s", [3], struct.pack("<3q", 1, -1, count), _INT64))
            inputs, single = [f"cells_{stride}", f"{head}_w", f"{head}_b"], {"kernel_shape": [1, 1]}
            nodes.append(_node("Conv", inputs, f"{head}_map", single))
            nodes.append(_node("Transpose", [f"{head}_map"], f"{head}_last", {"perm": [0, 2, 3, 1]}))
            nodes.append(_node("Reshape", [f"{head}_last", f"{head}_s"], head, {}))
            outputs.append(_value(head, [1, (320 // stride) ** 2, count]))
    graph = b"".join(_part(1, node) for node in nodes) + _part(2, b"tiny")
    graph += b"".join(_part(5, tensor) for tensor in weights) + _part(11, _value("input", [1, 3, 320, 320]))
    graph += b"".join(_part(12, value) for value in sorted(outputs, key=_place))
    path.write_bytes(_number(1, 8) + _part(7, graph) + _part(8, _number(2, 11)))
    return path


def _place(value: bytes) -> int:
    """Order outputs as YuNet does: scores of all strides, objectness, boxes, landmarks."""
    return next(k for k, name in enumerate((b"cls", b"obj", b"bbox", b"kps")) if name in value)


def _node(kind: str, inputs: Sequence[str], output: str, attributes: dict[str, list[int]]) -> bytes:
    body = b"".join(_part(1, name.encode()) for name in inputs) + _part(2, output.encode())
    body += _part(3, output.encode()) + _part(4, kind.encode())
    for name, values in attributes.items():
        body += _part(5, _part(1, name.encode()) + b"".join(_number(8, v) for v in values) + _number(20, _INTS))
    return body


def _tensor(name: str, dims: Sequence[int], data: bytes, kind: int) -> bytes:
    return b"".join(_number(1, d) for d in dims) + _number(2, kind) + _part(8, name.encode()) + _part(9, data)


def _value(name: str, dims: Sequence[int]) -> bytes:
    shape = b"".join(_part(1, _number(1, d)) for d in dims)
    return _part(1, name.encode()) + _part(2, _part(1, _number(1, _FLOAT) + _part(2, shape)))


def _part(field: int, data: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(data)) + data


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
