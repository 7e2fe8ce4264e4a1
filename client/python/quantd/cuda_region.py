"""Device memory in which this process leaves activations for a server on the same host.

Written against NVIDIA's driver, which is there wherever a GPU is: neither a CUDA toolkit nor a
framework is imported.
"""

from __future__ import annotations

import ctypes
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from quantd.dtypes import ITEM_SIZE, DType
from quantd.errors import Error, FailedPrecondition, InvalidArgument, ResourceExhausted
from quantd.v1 import calibration_pb2

#: Of __cuda_array_interface__. NumPy has no bfloat16: frameworks call it two opaque bytes, and a
#: view of its bits is taken, too.
_TYPES: dict[DType, tuple[str, ...]] = {
    "f64": ("<f8",),
    "f32": ("<f4",),
    "f16": ("<f2",),
    "bf16": ("<V2", "|V2", "<u2", "<i2"),
}
#: Whose memory it is stands in front of the slots.
_LABEL_BYTES = 4096
#: The driver exports whole blocks of this size: what others have in a block would be exported, too.
_BLOCK_BYTES = 2 << 20

_OUT_OF_MEMORY = 2
_ATTRIBUTE_DEVICE = 9
_NON_BLOCKING = 1


def is_on_device(array: Any) -> bool:
    """Whether `array` is one of a GPU's: of torch, CuPy, Numba, JAX and others."""
    return hasattr(array, "__cuda_array_interface__")


def natural_dtype(array: Any) -> DType:
    """The wire type of a GPU's array; 16-bit integers count as bfloat16 bit patterns.

    Raises:
        InvalidArgument: the array is of none of the four types.

    """
    typestr = _typestr(array)
    for dtype, names in _TYPES.items():
        if typestr in names:
            return dtype
    raise InvalidArgument(
        f"dtype: expected float64, float32, float16 or bfloat16 on the GPU, came {typestr}"
    )


def _typestr(array: Any) -> str:
    # Some versions of PyTorch say of bfloat16 that it is float16.
    if str(getattr(array, "dtype", "")).endswith("bfloat16"):
        return _TYPES["bf16"][0]
    return str(array.__cuda_array_interface__["typestr"])


@dataclass(frozen=True)
class DeviceRows:
    """Rows that lie one after the other in a GPU's memory."""

    pointer: int
    rows: int
    row_bytes: int
    stream: int | None  # whose work writes them; None: nobody says

    @classmethod
    def of(cls, what: str, array: Any, dtype: DType, cols: int) -> DeviceRows:
        """The rows of a GPU's array.

        Raises:
            InvalidArgument: it is elsewhere, or of another type or shape, or not contiguous.

        """
        if not is_on_device(array):
            raise InvalidArgument(
                f"{what}: expected an array on the GPU (__cuda_array_interface__) for cuda_ipc,"
                f" came {type(array).__name__}"
            )
        interface = array.__cuda_array_interface__
        shape = tuple(interface["shape"])
        if len(shape) != 2 or shape[1] != cols:
            raise InvalidArgument(
                f"{what}: expected tokens x {cols}, came {' x '.join(map(str, shape))}"
            )
        typestr = _typestr(array)
        if typestr not in _TYPES[dtype]:
            raise InvalidArgument(
                f"{what}: expected {dtype} ({_TYPES[dtype][0]}), since nothing is converted on the"
                f" GPU, came {typestr}"
            )
        size = ITEM_SIZE[dtype]
        strides = interface.get("strides")
        if strides is not None and tuple(strides) != (cols * size, size):
            raise InvalidArgument(
                f"{what}: expected a contiguous array, came strides {tuple(strides)}"
            )
        stream = interface.get("stream") if interface.get("version", 0) >= 3 else None
        return cls(interface["data"][0], shape[0], cols * size, stream)

    def part(self, start: int, stop: int) -> DeviceRows:
        """Rows [start, stop), as far as there are any."""
        stop = min(stop, self.rows)
        pointer = self.pointer + start * self.row_bytes
        return DeviceRows(pointer, stop - start, self.row_bytes, self.stream)

    @property
    def size(self) -> int:
        """Bytes."""
        return self.rows * self.row_bytes


class _Driver:
    """libcuda, with errors as exceptions."""

    def __init__(self) -> None:
        try:
            self._library = ctypes.CDLL("libcuda.so.1")
        except OSError as error:
            raise FailedPrecondition(f"cuda_ipc: no NVIDIA driver here: {error}") from None
        self("cuInit", 0)

    def __call__(self, function: str, *arguments: Any) -> None:
        code = getattr(self._library, function)(*arguments)
        if code == 0:
            return
        name = ctypes.c_char_p()
        self._library.cuGetErrorName(code, ctypes.byref(name))
        what = f"cuda_ipc: {function}: {(name.value or b'?').decode()}"
        if code == _OUT_OF_MEMORY:
            raise ResourceExhausted(what)
        raise Error(what, code="INTERNAL")


class CudaRegion:
    """A GPU's memory in equal slots, exported for a server on this host. Thread-safe.

    It stays until `close`, over any number of connections: what lies in a slot can be sent again.
    """

    def __init__(self, tenant: str, device: int, slots: int, slot_bytes: int) -> None:
        """Takes all of its memory at once, on device number `device` of this process.

        Raises:
            FailedPrecondition: there is no NVIDIA driver.
            ResourceExhausted: the device has not enough left.
            Error: another error of the driver's.

        """
        self.slots = slots
        self._device = device
        self._slot_bytes = slot_bytes
        self._lock = threading.Lock()
        self._call = _Driver()
        self._context = ctypes.c_void_p()
        self._stream = ctypes.c_void_p()
        self._memory = ctypes.c_uint64()
        self._number = ctypes.c_int()
        size = _LABEL_BYTES + slots * slot_bytes
        size += -size % _BLOCK_BYTES
        try:
            self._call("cuDeviceGet", ctypes.byref(self._number), device)
            self._call("cuDevicePrimaryCtxRetain", ctypes.byref(self._context), self._number)
            with self._current():
                self._call("cuStreamCreate", ctypes.byref(self._stream), _NON_BLOCKING)
                self._call("cuMemAlloc_v2", ctypes.byref(self._memory), ctypes.c_size_t(size))
                label = f"quantd.{tenant}.{uuid.uuid4().hex}".encode().ljust(_LABEL_BYTES, b"\0")
                self._call("cuMemcpyHtoD_v2", self._memory, label, ctypes.c_size_t(len(label)))
                handle = ctypes.create_string_buffer(64)
                self._call("cuIpcGetMemHandle", handle, self._memory)
            identity = ctypes.create_string_buffer(16)
            self._call("cuDeviceGetUuid_v2", identity, self._number)
        except Error:
            self.close()
            raise
        self.message = calibration_pb2.CudaIpcRegion(
            handle=handle.raw, device_uuid=f"GPU-{uuid.UUID(bytes=identity.raw)}", bytes=size
        )

    def wait_for(self, rows: DeviceRows) -> None:
        """Returns once what writes `rows` is done.

        Raises:
            InvalidArgument: they are not on the region's device.

        """
        with self._current():
            device = ctypes.c_int(-1)
            self._call(
                "cuPointerGetAttribute",
                ctypes.byref(device),
                _ATTRIBUTE_DEVICE,
                ctypes.c_uint64(rows.pointer),
            )
            if device.value != self._device:
                raise InvalidArgument(
                    f"cuda_ipc: expected an array on device {self._device} (cuda_device), came one"
                    f" on device {device.value}"
                )
            if rows.stream is None:  # any may
                self._call("cuCtxSynchronize")
            else:
                self._call("cuStreamSynchronize", ctypes.c_void_p(rows.stream))

    def write(self, slot: int, *parts: DeviceRows) -> list[calibration_pb2.SharedRange]:
        """Copies `parts`, which fit one slot, within the device; where they now lie."""
        offset = _LABEL_BYTES + slot * self._slot_bytes
        ranges = []
        with self._current():
            for part in parts:
                self._call(
                    "cuMemcpyDtoDAsync_v2",
                    ctypes.c_uint64(self._memory.value + offset),
                    ctypes.c_uint64(part.pointer),
                    ctypes.c_size_t(part.size),
                    self._stream,
                )
                ranges.append(calibration_pb2.SharedRange(offset=offset, bytes=part.size))
                offset += part.size
            self._call("cuStreamSynchronize", self._stream)
        return ranges

    def close(self) -> None:
        """Gives the memory back. No server may have it open any more."""
        with self._lock:
            if not self._context:
                return
            with self._current():
                if self._memory:
                    self._call("cuMemFree_v2", self._memory)
                if self._stream:
                    self._call("cuStreamDestroy_v2", self._stream)
            self._context = ctypes.c_void_p()
            self._call("cuDevicePrimaryCtxRelease_v2", self._number)

    @contextmanager
    def _current(self) -> Iterator[None]:
        """The device's primary context, which frameworks use, too, as this thread's."""
        self._call("cuCtxPushCurrent_v2", self._context)
        try:
            yield
        finally:
            self._call("cuCtxPopCurrent_v2", ctypes.byref(ctypes.c_void_p()))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
