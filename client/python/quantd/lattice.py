"""WaterSIC's weights: integers times a scale a row and a scale a column (docs/formats.md)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantd.entropy_code import decode_integers
from quantd.errors import InvalidArgument

#: A small file may stand for a large matrix of zeros, but not for an arbitrary one.
MAX_WEIGHTS_A_BYTE = 8192

TENSORS: dict[str, tuple[str, ...]] = {
    "z_stream": ("uint8",),
    "z_segment_offset": ("uint32",),
    "z_frequency": ("uint16",),
    "z_escape": ("int32",),
    "row_scale": ("float16",),
    "col_scale": ("float16",),
    "weight_global_scale": ("float32",),
    "dead_columns": ("uint16", "uint32"),
}


def decode_lattice(
    tensors: Mapping[str, NDArray[Any]], rows: int, cols: int
) -> NDArray[np.float64]:
    """The rows x cols matrix of the tensors; dead columns are zero.

    Raises:
        InvalidArgument: a tensor is missing or does not have the shape or dtype that it must have.
        DataLoss: the integers cannot be decoded.

    """
    for name, dtypes in TENSORS.items():
        if name not in tensors or tensors[name].dtype.name not in dtypes:
            came = tensors[name].dtype.name if name in tensors else "nothing"
            raise InvalidArgument(f"{name}: expected {' or '.join(dtypes)}, came {came}")
    if rows * cols > MAX_WEIGHTS_A_BYTE * sum(tensors[name].nbytes for name in TENSORS):
        raise InvalidArgument(f"weight_shape: {rows} x {cols} weights in so few bytes")
    live = np.ones(cols, np.bool_)
    dead = tensors["dead_columns"].astype(np.int64)
    if dead.ndim != 1 or (np.diff(dead) <= 0).any() or (dead >= cols).any():
        raise InvalidArgument(f"dead_columns: expected ascending indices below {cols}")
    live[dead] = False
    row_scale = _scales(tensors, "row_scale", rows)
    col_scale = _scales(tensors, "col_scale", int(live.sum()))
    global_scale = _scales(tensors, "weight_global_scale", 1)[0]
    if global_scale < np.finfo(np.float32).tiny:
        raise InvalidArgument(f"weight_global_scale: expected a number > 0, came {global_scale}")
    codes = decode_integers(tensors, rows, len(col_scale))
    values = np.zeros((rows, cols))
    values[:, live] = row_scale[:, None] * (col_scale / global_scale) * codes
    return values


def _scales(tensors: Mapping[str, NDArray[Any]], name: str, size: int) -> NDArray[np.float64]:
    scales = tensors[name]
    if scales.shape != (size,) or not np.isfinite(scales).all():
        raise InvalidArgument(f"{name}: expected {size} finite numbers, came {scales.shape}")
    return scales.astype(np.float64)
