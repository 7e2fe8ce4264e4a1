"""Shared memory in which this process leaves bytes for a server on the same host."""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import os
import sys
import threading
import uuid
from pathlib import Path
from types import TracebackType
from typing import Self

from quantd.errors import Error, InvalidArgument, ResourceExhausted
from quantd.v1 import calibration_pb2

_DIRECTORY = Path("/dev/shm")


def check_same_host(option: str, address: str) -> None:
    """Whether a server at `address` can see this host's memory, as `option` wants it.

    Raises:
        InvalidArgument: it is elsewhere, or this system has no /dev/shm.

    """
    if not sys.platform.startswith("linux"):
        raise InvalidArgument(f"{option}: expected Linux, came {sys.platform}")
    if not _is_loopback(address):
        raise InvalidArgument(
            f"{option}: expected a server on this host (localhost, 127.0.0.1, [::1] or"
            f" unix:PATH), came {address}"
        )


def _is_loopback(address: str) -> bool:
    if address.startswith(("unix:", "unix-abstract:")):
        return True
    host = address.rpartition(":")[0].strip("[]")
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class SharedRegion:
    """A POSIX shared-memory region of equal slots, readable by this user alone.

    The name is there only until `unlink`, which the owner calls once the server has opened it, so
    that nothing stays behind however this process ends. Use as a context manager.
    """

    def __init__(self, tenant: str, slots: int, slot_bytes: int) -> None:
        """Takes all of its memory at once.

        Raises:
            ResourceExhausted: /dev/shm has not enough left.
            Error: it cannot be written.

        """
        self.name = f"quantd.{tenant}.{uuid.uuid4().hex}"
        self.slots = slots
        self._slot_bytes = slot_bytes
        self._path = _DIRECTORY / self.name
        self._lock = threading.Lock()
        self._linked = True
        self._descriptor: int | None = None
        size = slots * slot_bytes
        try:
            self._descriptor = os.open(
                self._path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600
            )
            # Memory that is missing is an error here; later it would end the process.
            os.posix_fallocate(self._descriptor, 0, size)
        except OSError as error:
            self.close()
            what = f"{size} bytes of shared memory at {self._path}: {error.strerror}"
            if error.errno in (errno.ENOSPC, errno.ENOMEM, errno.EDQUOT):
                raise ResourceExhausted(f"{what} (df /dev/shm says what is left)") from None
            raise Error(what, code="INTERNAL") from None

    def write(self, slot: int, *parts: bytes) -> list[calibration_pb2.SharedRange] | None:
        """Where `parts`, which fit one slot, now lie; None once the region is closed."""
        offset = slot * self._slot_bytes
        ranges = []
        for part in parts:
            written = 0
            while written < len(part):
                with self._lock:  # so that the descriptor is not yet another file's
                    if self._descriptor is None:
                        return None
                    rest = memoryview(part)[written:]
                    written += os.pwrite(self._descriptor, rest, offset + written)
            ranges.append(calibration_pb2.SharedRange(offset=offset, bytes=len(part)))
            offset += len(part)
        return ranges

    def unlink(self) -> None:
        """Removes the name; who has the region open keeps it."""
        if self._linked:
            self._linked = False
            with contextlib.suppress(FileNotFoundError):
                self._path.unlink()

    def close(self) -> None:
        """Gives the memory back once the server has closed it, too."""
        with self._lock:
            if self._descriptor is not None:
                self.unlink()
                os.close(self._descriptor)
                self._descriptor = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
