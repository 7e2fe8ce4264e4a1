"""HIGGS's weights: points of a Gaussian grid, Hadamard transformed by groups (docs/formats.md)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantd.errors import InvalidArgument
from quantd.gaussian_grid import GRIDS
from quantd.recipe import Recipe


def column_signs(seed: int, cols: int) -> NDArray[np.float64]:
    """-1 where the top bit of SplitMix64 number `column` after `seed` is set."""
    with np.errstate(over="ignore"):
        z = np.uint64(seed) + np.arange(1, cols + 1, dtype=np.uint64) * np.uint64(
            0x9E3779B97F4A7C15
        )
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.where((z ^ (z >> np.uint64(31))) >> np.uint64(63) != 0, -1.0, 1.0)


def hadamard(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Sylvester's matrix, not normalized, times the last axis; sums in the service's order."""
    size = values.shape[-1]
    half = 1
    while half < size:
        pairs = values.reshape(*values.shape[:-1], size // (2 * half), 2, half)
        a, b = pairs[..., 0, :], pairs[..., 1, :]
        values = np.stack([a + b, a - b], axis=-2).reshape(values.shape)
        half *= 2
    return values


def decode_grid(
    recipe: Recipe, tensors: Mapping[str, NDArray[Any]], rows: int, cols: int
) -> NDArray[np.float64]:
    """The rows x cols matrix of the tensors.

    Raises:
        InvalidArgument: a tensor is missing or does not fit.

    """
    bits, dimension = int(recipe.rate_bits or 0), recipe.grid_dimension or 1
    group = recipe.group_size or 256
    if (bits, dimension) not in GRIDS or cols % group:
        raise InvalidArgument(
            f"no grid of {bits} bits in {dimension} dimensions for {cols} columns"
        )
    packed = _tensor(tensors, "weight_packed", "uint8", (rows, cols * bits // 8))
    scales = _tensor(tensors, "weight_scale", "float16", (rows, cols // group)).astype(np.float64)
    scale = _tensor(tensors, "weight_global_scale", "float32", (1,)).astype(np.float64)[0]
    if not (np.isfinite(scales).all() and (scales >= 0).all() and np.isfinite(scale) and scale > 0):
        raise InvalidArgument("weight_scale: expected finite numbers >= 0")
    # Code i takes the bits from i * bits * dimension on, the lowest of each byte first.
    code_bits = bits * dimension
    every_bit = np.unpackbits(packed, axis=1, bitorder="little").reshape(rows, -1, code_bits)
    codes = every_bit.astype(np.int64) @ (1 << np.arange(code_bits))
    grid = np.array(GRIDS[bits, dimension], np.float32).astype(np.float64).reshape(-1, dimension)
    values = hadamard(grid[codes].reshape(rows, cols // group, group))
    values = values * (scales / scale / np.sqrt(float(group)))[:, :, None]
    signed: NDArray[np.float64] = values.reshape(rows, cols) * column_signs(recipe.seed, cols)
    return signed


def _tensor(
    tensors: Mapping[str, NDArray[Any]], name: str, dtype: str, shape: tuple[int, ...]
) -> NDArray[Any]:
    tensor = tensors.get(name)
    if tensor is None or tensor.dtype.name != dtype or tensor.shape != shape:
        came = "nothing" if tensor is None else f"{tensor.dtype.name} {tensor.shape}"
        raise InvalidArgument(f"{name}: expected {dtype} {shape}, came {came}")
    return tensor
