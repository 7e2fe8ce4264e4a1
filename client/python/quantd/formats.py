"""Number formats: decoding of packed weights, and quantization of activations in the same format.

The arithmetic is in float64 and follows the server's rules exactly, so that the decoded values and
the codes chosen for activations are the server's.

| format | element | scale |
|---|---|---|
| mxfp4 | E2M1 | E8M0 a group of 32; rule `noclip` divides it by a global 3 |
| nvfp4 | E2M1 | E4M3 a group of 16, divided by one global scale a tensor |
| int2, int3, int4, int8 | two's complement | bfloat16 a group or row |
| fp8 | E4M3 | float32 a row or 128 x 128 block |
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantd.dtypes import from_bfloat16, to_bfloat16
from quantd.errors import InvalidArgument
from quantd.recipe import Format, Recipe, ScaleRule

Float64 = NDArray[np.float64]

E2M1_MAX = 6.0
E4M3_MAX = 448.0
E4M3_MIN_NORMAL_EXPONENT = -6
E8M0_BIAS = 127
E4M3_SMALLEST = 2.0**-9
BFLOAT16_MAX = float.fromhex("0x1.fep127")
MXFP4_NOCLIP_GLOBAL = 3.0
#: Smallest and largest E8M0 code of a group that is not all zero, by scale rule.
NOCLIP_CODES = (2, 253)
OCP_CODES = (0, 252)

#: Step of the mean-squared-error optimal uniform quantizer of a unit Gaussian, in units of
#: 2/(2^b - 1): WUSH, arXiv 2512.00956.
GAUSSIAN_MSE_FACTOR = {2: 1.49353, 3: 2.05107, 4: 2.51393, 8: 3.88494}

#: Axes of one cell in the result of `_grouped`.
_WITHIN_CELL = (1, 3)

_ELEMENT_BITS: dict[Format | None, int] = {
    "mxfp4": 4,
    "nvfp4": 4,
    "int2": 2,
    "int3": 3,
    "int4": 4,
    "int8": 8,
    "fp8": 8,
}


def _e4m3_values() -> Float64:
    codes = np.arange(256)
    exponent, mantissa = (codes >> 3) & 15, codes & 7
    magnitude = np.where(
        exponent == 0,
        mantissa * 2.0 ** (E4M3_MIN_NORMAL_EXPONENT - 3),
        (1 + mantissa / 8) * np.exp2(exponent - 7.0),
    )
    magnitude[(codes & 0x7F) == 0x7F] = np.nan
    return np.where(codes & 0x80, -magnitude, magnitude)


#: Value of each E2M1 code (low nibble, sign in bit 3).
E2M1_VALUES: Float64 = np.array(
    [0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float64
)
#: Value of each E4M3 code; 0x7f and 0xff are NaN.
E4M3_VALUES: Float64 = _e4m3_values()


def unpack_codes(packed: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """One code a byte: R x C*bits/8 to R x C. Element 0 has the lowest bits of byte 0."""
    if bits == 8:
        return packed
    stream = np.unpackbits(packed, axis=-1, bitorder="little")
    weights = (1 << np.arange(bits)).astype(np.uint8)
    codes: NDArray[np.uint8] = stream.reshape(*packed.shape[:-1], -1, bits) @ weights
    return codes


def element_values(format: Format | None, scale_rule: ScaleRule | None) -> Float64:
    """What each code stands for, before the scale: 2^bits values."""
    if format in ("mxfp4", "nvfp4"):
        return E2M1_VALUES
    if format == "fp8":
        return E4M3_VALUES
    count = 1 << _ELEMENT_BITS[format]
    codes = np.arange(count, dtype=np.float64)
    signed = np.where(codes < count / 2, codes, codes - count)
    return signed + 0.5 if scale_rule == "gaussian-mse" else signed


def decode_scales(
    format: Format | None, stored: NDArray[Any], global_scale: float | None
) -> Float64:
    """Stored scales to the values that multiply the elements, the global scale included."""
    if format == "mxfp4":
        scales = np.exp2(stored.astype(np.float64) - E8M0_BIAS)
    elif format == "nvfp4":
        scales = E4M3_VALUES[stored]
    elif format == "fp8":
        scales = stored.astype(np.float64)
    else:
        scales = from_bfloat16(stored).astype(np.float64)
    return scales if global_scale is None else scales / float(global_scale)


def decode(
    recipe: Recipe,
    packed: NDArray[np.uint8],
    stored_scales: NDArray[Any],
    global_scale: float | None,
) -> Float64:
    """Decoded codes, R x C: the matrix that the transformed inputs see.

    Args:
        recipe: resolved, as the server stores it with the result.
        packed: `weight_packed`, R x C*bits/8 uint8.
        stored_scales: `weight_scale`, one a group; E8M0 and E4M3 as uint8, bfloat16 as uint16.
        global_scale: `weight_global_scale` where the format has one.

    Raises:
        InvalidArgument: the shapes do not fit each other.

    """
    codes = unpack_codes(packed, _ELEMENT_BITS[recipe.format])
    scales = decode_scales(recipe.format, stored_scales, global_scale)
    values = element_values(recipe.format, recipe.scale_rule)[codes]
    return values * _spread(scales, values.shape, recipe)


def fake_quantize(values: NDArray[Any], recipe: Recipe) -> Float64:
    """`values` (N x C) rounded to what the recipe's format can hold, scales taken from `values`.

    This is dynamic quantization of activations, one token a row: groups of columns a row (of 128
    columns where weights share scales in 128 x 128 blocks; in 8 bits with int2 and int3), and where
    the format has a global scale, one for all of `values`. Finite inputs give finite outputs.
    """
    if recipe.format in ("int2", "int3"):
        recipe = dataclasses.replace(recipe, format="int8", scale_rule="absmax")
    if recipe.granularity == "block-128x128":
        recipe = dataclasses.replace(recipe, granularity="group", group_size=128)
    matrix = np.atleast_2d(np.asarray(values, np.float64))
    global_scale = _global_scale(recipe, matrix)
    scales = compute_scales(recipe, matrix, global_scale)
    spread = _spread(scales, matrix.shape, recipe)
    with np.errstate(divide="ignore", invalid="ignore"):
        scaled = np.where(spread > 0, matrix / spread, 0.0)
    return (_round_elements(recipe, scaled) * spread).reshape(np.shape(values))


def compute_scales(recipe: Recipe, matrix: Float64, global_scale: float | None) -> Float64:
    """The scale of each group of activations `matrix` (N x C), as its stored form decodes.

    Groups of zeros may have any scale. nvfp4 follows the largest magnitude here whatever the
    weights' rule, as engines do.
    """
    groups = _grouped(matrix, recipe)
    amax = np.abs(groups).max(axis=_WITHIN_CELL)
    if recipe.format == "mxfp4":
        floor_log2 = np.frexp(np.where(amax > 0, amax, 1.0))[1] - 1
        if recipe.scale_rule == "ocp":
            code = np.clip(floor_log2 - 2 + E8M0_BIAS, *OCP_CODES)
            return np.asarray(np.exp2(code - float(E8M0_BIAS)))
        code = np.clip(floor_log2 + E8M0_BIAS, *NOCLIP_CODES)
        return np.asarray(np.exp2(code - float(E8M0_BIAS)) / MXFP4_NOCLIP_GLOBAL)
    if recipe.format == "nvfp4":
        assert global_scale is not None
        stored = round_e4m3(amax * global_scale / E2M1_MAX)
        return np.where(amax > 0, np.maximum(stored, E4M3_SMALLEST), 0.0) / global_scale
    if recipe.format == "fp8":
        return np.asarray((amax / E4M3_MAX).astype(np.float32), np.float64)
    bits = _ELEMENT_BITS[recipe.format]
    if recipe.scale_rule == "gaussian-mse":
        rms = np.sqrt(np.square(groups).mean(axis=_WITHIN_CELL))
        scales = rms * GAUSSIAN_MSE_FACTOR[bits] * 2 / (2**bits - 1)
    elif recipe.scale_rule == "compressed-tensors":
        scales = amax / ((2**bits - 1) / 2)
    else:
        scales = amax / (2 ** (bits - 1) - 1)
    scales = np.minimum(scales, BFLOAT16_MAX)
    return from_bfloat16(to_bfloat16(scales)).astype(np.float64)


def round_e2m1(values: Float64) -> Float64:
    """Nearest E2M1 value, ties to the even code, saturating at +-6."""
    magnitude = np.abs(values)
    step = np.where(magnitude < 2, 0.5, np.where(magnitude < 4, 1.0, 2.0))
    return np.asarray(np.clip(np.rint(values / step) * step, -E2M1_MAX, E2M1_MAX))


def round_e4m3(values: Float64) -> Float64:
    """Nearest E4M3 value, ties to the even code, saturating at +-448."""
    exponent = np.frexp(values)[1] - 1
    step = np.exp2(np.maximum(exponent, E4M3_MIN_NORMAL_EXPONENT) - 3.0)
    return np.asarray(np.clip(np.rint(values / step) * step, -E4M3_MAX, E4M3_MAX))


def _global_scale(recipe: Recipe, matrix: Float64) -> float | None:
    if recipe.format != "nvfp4":
        return None
    amax = float(np.abs(matrix).max(initial=0.0))
    if amax == 0:
        return 1.0
    limits = np.finfo(np.float32)
    clamped = min(max(E4M3_MAX * E2M1_MAX / amax, float(limits.tiny)), float(limits.max))
    return float(np.float32(clamped))


def _round_elements(recipe: Recipe, scaled: Float64) -> Float64:
    if recipe.format in ("mxfp4", "nvfp4"):
        return round_e2m1(scaled)
    if recipe.format == "fp8":
        return round_e4m3(scaled)
    top = 2 ** (_ELEMENT_BITS[recipe.format] - 1)
    if recipe.scale_rule == "gaussian-mse":
        return np.asarray(np.clip(np.floor(scaled), -top, top - 1) + 0.5)
    return np.asarray(np.clip(np.rint(scaled), -top, top - 1))


def _cell(recipe: Recipe, cols: int) -> tuple[int, int]:
    """Rows and columns of values that share a scale."""
    if recipe.granularity == "block-128x128":
        return 128, 128
    if recipe.granularity == "row" or (recipe.format == "fp8" and recipe.granularity is None):
        return 1, cols
    defaults: dict[Format | None, int] = {"mxfp4": 32, "nvfp4": 16}
    return 1, recipe.group_size or defaults.get(recipe.format, 32)


def _grouped(matrix: Float64, recipe: Recipe) -> Float64:
    """N x C to cells: (cell rows, rows in a cell, cell cols, cols in a cell); padded with zeros."""
    rows, cols = matrix.shape
    cell_rows, cell_cols = _cell(recipe, cols)
    padding = (-rows % cell_rows, -cols % cell_cols)
    if any(padding):
        if recipe.format != "fp8":
            raise InvalidArgument(f"expected a multiple of {cell_cols} columns, came {cols}")
        matrix = np.pad(matrix, [(0, padding[0]), (0, padding[1])])
    return matrix.reshape(
        matrix.shape[0] // cell_rows, cell_rows, matrix.shape[1] // cell_cols, cell_cols
    )


def _spread(scales: Float64, shape: tuple[int, ...], recipe: Recipe) -> Float64:
    """Each element's scale: scales of the grid to an array of `shape`."""
    rows, cols = shape
    cell_rows, cell_cols = _cell(recipe, cols)
    expected = (-(-rows // cell_rows), -(-cols // cell_cols))
    if scales.size != expected[0] * expected[1]:
        raise InvalidArgument(
            f"weight_scale: expected {expected[0]} x {expected[1]} scales for {rows} x {cols}"
            f" values, came {' x '.join(map(str, scales.shape))}"
        )
    scales = scales.reshape(expected)
    if cell_rows > 1:
        scales = np.repeat(scales, cell_rows, axis=0)[:rows]
    return np.repeat(scales, cell_cols, axis=1)[:, :cols]
