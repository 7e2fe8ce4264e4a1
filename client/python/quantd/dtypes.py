"""Element types on the wire, and bfloat16, which NumPy lacks.

A bfloat16 array is a uint16 array of bit patterns, or an array of `ml_dtypes.bfloat16`.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from quantd.errors import FieldViolation, InvalidArgument
from quantd.v1 import recipe_pb2

DType = Literal["f64", "f32", "f16", "bf16"]

ITEM_SIZE: dict[DType, int] = {"f64": 8, "f32": 4, "f16": 2, "bf16": 2}
_NUMPY: dict[DType, np.dtype[Any]] = {
    "f64": np.dtype("<f8"),
    "f32": np.dtype("<f4"),
    "f16": np.dtype("<f2"),
    "bf16": np.dtype("<u2"),
}
_PROTO: dict[DType, recipe_pb2.DType] = {
    "f64": recipe_pb2.F64,
    "f32": recipe_pb2.F32,
    "f16": recipe_pb2.F16,
    "bf16": recipe_pb2.BF16,
}


def to_bfloat16(values: NDArray[np.floating[Any]]) -> NDArray[np.uint16]:
    """Bit patterns of the nearest bfloat16 (ties to even); what is too large becomes Inf."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    # Adding 0x7fff plus the lowest kept bit carries into the upper half exactly when RNE rounds up.
    rounded = ((bits + np.uint32(0x7FFF) + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    nan = (bits & 0x7FFFFFFF) > 0x7F800000
    if nan.any():
        rounded[nan] = 0x7FC0
    return rounded


def from_bfloat16(bits: NDArray[np.uint16]) -> NDArray[np.float32]:
    """The float32 values of bfloat16 bit patterns; exact."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def natural_dtype(array: NDArray[Any]) -> DType:
    """The wire type that keeps every value of `array`; uint16 counts as bfloat16 bit patterns.

    Raises:
        InvalidArgument: the array is of none of the four types.

    """
    name = array.dtype.name
    if name in ("bfloat16", "uint16"):
        return "bf16"
    for dtype, numpy_dtype in _NUMPY.items():
        if name == numpy_dtype.name:
            return dtype
    raise InvalidArgument(
        f"dtype: expected float64, float32, float16, bfloat16 or uint16 (its bits), came {name}"
    )


def encode(array: NDArray[Any], dtype: DType) -> NDArray[Any]:
    """`array` as a contiguous little-endian array of `dtype`, converted where it differs.

    Raises:
        InvalidArgument: `array` is not of a floating-point type, or `dtype` is unknown.

    """
    if dtype not in get_args(DType):
        raise InvalidArgument(
            f"dtype: expected one of {', '.join(get_args(DType))}, came {dtype!r}",
            field_violations=[FieldViolation("dtype", f"unknown: {dtype!r}")],
        )
    source = natural_dtype(array)
    if source == dtype:
        if array.dtype.name == "bfloat16":
            array = array.view(np.uint16)
        return np.ascontiguousarray(array, _NUMPY[dtype])
    if source == "bf16":
        bits = array.view(np.uint16) if array.dtype.name == "bfloat16" else array
        array = from_bfloat16(bits)
    if dtype == "bf16":
        return to_bfloat16(array)
    return np.ascontiguousarray(array, _NUMPY[dtype])


def decode(data: bytes, dtype: str, shape: tuple[int, ...]) -> NDArray[Any]:
    """Array of raw little-endian bytes. `dtype` is a safetensors name (F32, BF16, F8_E4M3, U8 ...).

    BF16 comes back as uint16 bit patterns, F8_E4M3 and F8_E8M0 as uint8 codes.
    """
    numpy_dtype = SAFETENSORS_DTYPES.get(dtype)
    if numpy_dtype is None:
        raise InvalidArgument(f"dtype: {dtype} is not known")
    expected = int(np.prod(shape, dtype=np.int64)) * numpy_dtype.itemsize
    if len(data) != expected:
        raise InvalidArgument(f"expected {expected} bytes for {dtype} {shape}, came {len(data)}")
    return np.frombuffer(data, numpy_dtype).reshape(shape)


def to_proto(dtype: DType) -> recipe_pb2.DType:
    """The enum value of `dtype`."""
    return _PROTO[dtype]


def from_proto(dtype: recipe_pb2.DType) -> DType:
    """The name of an enum value; `f32` where it is unspecified."""
    for name, value in _PROTO.items():
        if value == dtype:
            return name
    return "f32"


SAFETENSORS_DTYPES: dict[str, np.dtype[Any]] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
    "F8_E4M3": np.dtype("u1"),
    "F8_E8M0": np.dtype("u1"),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U64": np.dtype("<u8"),
    "U32": np.dtype("<u4"),
    "U16": np.dtype("<u2"),
    "U8": np.dtype("u1"),
}
