"""Number formats in NumPy, written from docs/formats.md and not from the server's code.

A stored weight is codes and scales; value = element(code) * scale, the scale with everything that
belongs to it (a global divisor, too).
"""

from __future__ import annotations

import numpy as np
from quantd.v1 import recipe_pb2

from .wire import StoredTensor, from_bf16_bits, to_bf16_bits

MXFP4, NVFP4 = recipe_pb2.MXFP4, recipe_pb2.NVFP4
INT4, INT8, FP8 = recipe_pb2.INT4, recipe_pb2.INT8, recipe_pb2.FP8

E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])
# Codes 0..126 of E4M3: bias 7, three bits of mantissa, subnormals below 2^-6; 127 is NaN.
E4M3 = np.array(
    [
        (code & 7) / 8 * 2.0**-6 if code < 8 else (1 + (code & 7) / 8) * 2.0 ** ((code >> 3) - 7)
        for code in range(127)
    ]
)
GAUSSIAN_K = {4: 2.51393, 8: 3.88494}  # clipping of a unit Gaussian with 2^b levels


def _nearest(values: np.ndarray, grid: np.ndarray) -> np.ndarray:
    """Indices into a non-negative grid: nearest, ties to the even index, saturating."""
    magnitude = np.abs(values)
    upper = np.clip(np.searchsorted(grid, magnitude), 1, len(grid) - 1)
    down, up = magnitude - grid[upper - 1], grid[upper] - magnitude
    prefer_upper = (up < down) | ((up == down) & (upper % 2 == 0))
    return np.where(prefer_upper, upper, upper - 1)


def dense(tensor: StoredTensor) -> np.ndarray:
    """A stored tensor of plain numbers, as float64."""
    if tensor.dtype == "BF16":
        flat = from_bf16_bits(np.frombuffer(tensor.data, "<u2"))
    else:
        flat = np.frombuffer(tensor.data, {"F32": "<f4", "F64": "<f8", "F16": "<f2"}[tensor.dtype])
    return flat.astype(np.float64).reshape(tensor.shape)


def stored_codes(
    tensors: dict[str, StoredTensor], recipe: recipe_pb2.Recipe, rows: int, cols: int
) -> np.ndarray:
    """One code an element; integers are signed already."""
    packed = tensors["weight_packed"]
    raw = np.frombuffer(packed.data, np.uint8).reshape(packed.shape)
    if recipe.format in (MXFP4, NVFP4, INT4):
        assert (packed.dtype, packed.shape) == ("U8", (rows, cols // 2))
        codes = np.stack([raw & 15, raw >> 4], axis=-1).reshape(rows, cols).astype(np.int64)
        return np.where(codes >= 8, codes - 16, codes) if recipe.format == INT4 else codes
    assert packed.shape == (rows, cols)
    assert packed.dtype == {INT8: "U8", FP8: "F8_E4M3"}[recipe.format]
    return raw.view(np.int8).astype(np.int64) if recipe.format == INT8 else raw.astype(np.int64)


def _group(recipe: recipe_pb2.Recipe, cols: int) -> int:
    return recipe.group_size if recipe.granularity == recipe_pb2.GROUP else cols


def _global(tensors: dict[str, StoredTensor]) -> float:
    tensor = tensors.get("weight_global_scale")
    if tensor is None:
        return 1.0
    assert (tensor.dtype, tensor.shape) == ("F32", (1,))
    return float(dense(tensor)[0])


def stored_scales(tensors: dict[str, StoredTensor], recipe: recipe_pb2.Recipe) -> np.ndarray:
    """What codes are multiplied by, in the stored scales' own shape."""
    tensor = tensors["weight_scale"]
    raw = np.frombuffer(tensor.data, np.uint8)
    if recipe.format == MXFP4:
        assert tensor.dtype == "U8"
        scales = 2.0 ** (raw.astype(np.float64) - 127)
    elif recipe.format == NVFP4:
        assert tensor.dtype == "F8_E4M3"
        scales = E4M3[raw]
    else:
        assert tensor.dtype == {INT4: "BF16", INT8: "BF16", FP8: "F32"}[recipe.format]
        scales = dense(tensor)
    return scales.reshape(tensor.shape) / _global(tensors)


def _spread(scales: np.ndarray, recipe: recipe_pb2.Recipe, rows: int, cols: int) -> np.ndarray:
    """One scale an element."""
    if recipe.granularity == recipe_pb2.BLOCK_128X128:
        assert scales.shape == (-(-rows // 128), -(-cols // 128))
        return np.repeat(np.repeat(scales, 128, axis=0), 128, axis=1)[:rows, :cols]
    group = _group(recipe, cols)
    assert scales.shape == (rows, cols // group)
    return np.repeat(scales, group, axis=1)


def _elements(codes: np.ndarray, recipe: recipe_pb2.Recipe) -> np.ndarray:
    """What a code stands for, before its scale."""
    if recipe.format in (MXFP4, NVFP4):
        return np.where(codes & 8, -1.0, 1.0) * E2M1[codes & 7]
    if recipe.format == FP8:
        return np.where(codes & 128, -1.0, 1.0) * E4M3[codes & 127]
    return codes + 0.5 if recipe.scale_rule == recipe_pb2.GAUSSIAN_MSE else codes.astype(float)


def decode_weight(
    tensors: dict[str, StoredTensor], recipe: recipe_pb2.Recipe, rows: int, cols: int
) -> np.ndarray:
    """The stored matrix in the transformed coordinates, rows x cols."""
    shape = tensors["weight_shape"]
    assert (shape.dtype, np.frombuffer(shape.data, "<i8").tolist()) == ("I64", [rows, cols])
    codes = stored_codes(tensors, recipe, rows, cols)
    scales = stored_scales(tensors, recipe)
    return _elements(codes, recipe) * _spread(scales, recipe, rows, cols)


def _codes(values: np.ndarray, spread: np.ndarray, recipe: recipe_pb2.Recipe) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        scaled = np.where(spread > 0, values / spread, 0.0)
    if recipe.format in (MXFP4, NVFP4):
        return _nearest(scaled, E2M1) | (np.signbit(scaled) << 3)
    if recipe.format == FP8:
        return _nearest(scaled, E4M3) | (np.signbit(scaled) << 7)
    low, high = (-8, 7) if recipe.format == INT4 else (-128, 127)
    gaussian = recipe.scale_rule == recipe_pb2.GAUSSIAN_MSE
    whole = np.floor(scaled) if gaussian else np.rint(scaled)
    return np.clip(whole, low, high).astype(np.int64)


def round_with_scales(
    values: np.ndarray, tensors: dict[str, StoredTensor], recipe: recipe_pb2.Recipe
) -> np.ndarray:
    spread = _spread(stored_scales(tensors, recipe), recipe, *values.shape)
    return _codes(values, spread, recipe)


def scales_of(values: np.ndarray, recipe: recipe_pb2.Recipe) -> np.ndarray:
    """The scales that the recipe's rule gives these values, in the stored shape."""
    rows, cols = values.shape
    if recipe.granularity == recipe_pb2.BLOCK_128X128:
        tall, wide = -(-rows // 128), -(-cols // 128)
        padded = np.zeros((tall * 128, wide * 128))
        padded[:rows, :cols] = values
        amax = np.abs(padded).reshape(tall, 128, wide, 128).max(axis=(1, 3))
        return (amax / 448).astype(np.float32).astype(np.float64)
    groups = values.reshape(rows, -1, _group(recipe, cols))
    amax = np.abs(groups).max(axis=2)
    if recipe.format == MXFP4:
        with np.errstate(divide="ignore"):
            exponent = np.floor(np.log2(amax))
        if recipe.scale_rule == recipe_pb2.NOCLIP:
            return 2.0**exponent / 3
        return 2.0 ** (exponent - 2)
    if recipe.format == NVFP4:
        divisor = np.float32(448 * 6 / amax.max())
        stored = E4M3[_nearest(amax * float(divisor) / 6, E4M3)]
        return stored / float(divisor)
    if recipe.format == FP8:
        return (amax / 448).astype(np.float32).astype(np.float64)
    bits = 4 if recipe.format == INT4 else 8
    if recipe.scale_rule == recipe_pb2.GAUSSIAN_MSE:
        rms = np.sqrt((groups**2).mean(axis=2))
        scales = GAUSSIAN_K[bits] * 2 / (2**bits - 1) * rms
    elif recipe.scale_rule == recipe_pb2.COMPRESSED_TENSORS:
        scales = amax / ((2**bits - 1) / 2)
    else:
        scales = amax / (2 ** (bits - 1) - 1)
    return from_bf16_bits(to_bf16_bits(scales)).astype(np.float64)


def quantize_activations(rows: np.ndarray, recipe: recipe_pb2.Recipe) -> np.ndarray:
    """As an engine does on the fly: scales from the values themselves, NVFP4's search left out."""
    rule = recipe_pb2.Recipe()
    rule.CopyFrom(recipe)
    if rule.scale_rule == recipe_pb2.MSE:
        rule.scale_rule = recipe_pb2.AMAX
    if rule.granularity == recipe_pb2.BLOCK_128X128:
        rule.granularity, rule.group_size = recipe_pb2.GROUP, 128  # of one token
    spread = _spread(scales_of(rows, rule), rule, *rows.shape)
    return _elements(_codes(rows, spread, rule), rule) * spread
