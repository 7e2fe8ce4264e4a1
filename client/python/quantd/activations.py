"""Streaming of activations into a statistic, exactly once over any number of connections."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import google_crc32c
import grpc
import numpy as np
from google.protobuf.empty_pb2 import Empty
from numpy.typing import NDArray

from quantd import dtypes
from quantd.cuda_region import CudaRegion, DeviceRows, is_on_device
from quantd.dtypes import DType
from quantd.errors import Error, InvalidArgument, Unavailable, from_rpc_error
from quantd.resources import StatisticKind, kind_to_proto
from quantd.shared_region import SharedRegion, check_same_host
from quantd.transport import CHUNK_BYTES, Backoff, Transport, is_transient_for_writer
from quantd.v1 import calibration_pb2, calibration_pb2_grpc

#: Bytes kept here because they are not durable yet; beyond, `send` asks for a commit and waits.
PENDING_BYTES_MAX = 1 << 30
#: Chunks in shared memory at once: with the usual sizes, as many as the server's credit allows.
_SHARED_SLOTS = 16
#: Device memory that a stream takes with cuda_ipc.
CUDA_IPC_BYTES = 512 << 20


@dataclass(frozen=True)
class _Chunk:
    message: calibration_pb2.ActivationChunk  # without its bytes

    @property
    def seq(self) -> int:
        return self.message.seq

    @property
    def size(self) -> int:
        return 4 * len(self.message.token_weights)

    def seal(self) -> None:
        """Once it has its number: makes it what is sent, and sent again."""
        raise NotImplementedError

    def request(
        self, region: SharedRegion | None
    ) -> calibration_pb2.StreamActivationsRequest | None:
        """The message with its bytes, or with where it left them; None: the region is closed."""
        raise NotImplementedError


@dataclass(frozen=True)
class _DeviceChunk(_Chunk):
    """Its bytes stay in a slot of its own until it is durable.

    Nobody sums them: on this side, they never leave the device's memory.
    """

    data: DeviceRows
    paired: DeviceRows | None
    memory: CudaRegion

    @property
    def size(self) -> int:
        return super().size + self.data.size + (0 if self.paired is None else self.paired.size)

    def seal(self) -> None:
        parts = [self.data] if self.paired is None else [self.data, self.paired]
        ranges = self.memory.write(self.seq % self.memory.slots, *parts)
        self.message.shared.CopyFrom(ranges[0])
        if self.paired is not None:
            self.message.paired_shared.CopyFrom(ranges[1])

    def request(self, region: SharedRegion | None) -> calibration_pb2.StreamActivationsRequest:
        return calibration_pb2.StreamActivationsRequest(chunk=self.message)


@dataclass(frozen=True)
class _HostChunk(_Chunk):
    data: bytes
    paired: bytes

    @property
    def size(self) -> int:
        return super().size + len(self.data) + len(self.paired)

    def seal(self) -> None:
        self.message.crc32c = google_crc32c.value(self.data)
        if self.paired:
            self.message.paired_crc32c = google_crc32c.value(self.paired)

    def request(
        self, region: SharedRegion | None
    ) -> calibration_pb2.StreamActivationsRequest | None:
        request = calibration_pb2.StreamActivationsRequest(chunk=self.message)
        if region is None:
            request.chunk.data = self.data
            request.chunk.paired_data = self.paired
            return request
        # Chunks that fly have successive numbers and are no more than there are slots.
        ranges = region.write(self.seq % region.slots, self.data, self.paired)
        if ranges is None:
            return None
        request.chunk.shared.CopyFrom(ranges[0])
        if self.paired:
            request.chunk.paired_shared.CopyFrom(ranges[1])
        return request


#: The tokens of an array, and what makes a chunk of some of them.
_Cut = tuple[int, Callable[[calibration_pb2.ActivationChunk, int, int], _Chunk]]


class ActivationStream:
    """One writer of a statistic. Use as a context manager; a clean exit makes everything durable.

    Rows go in with `send`, which cuts them into chunks numbered 1, 2, 3 ... Every chunk is kept
    until the server has it durably, and sent again after a reconnect; the server drops what it
    already counted. Chunks that an earlier stream with the same id made durable are skipped, so a
    program that was stopped can simply run again with the same data in the same order.

    `send`, `flush` and `close` belong to one thread; several streams may run beside each other.
    """

    def __init__(
        self,
        transport: Transport,
        header: calibration_pb2.ActivationHeader,
        dtype: DType,
        *,
        chunk_bytes: int = CHUNK_BYTES,
        shared_memory: bool = False,
        cuda_ipc: bool = False,
        cuda_device: int = 0,
        cuda_ipc_bytes: int = CUDA_IPC_BYTES,
    ) -> None:
        if shared_memory and cuda_ipc:
            raise InvalidArgument("cuda_ipc: expected one of shared_memory and cuda_ipc, came both")
        if shared_memory or cuda_ipc:
            check_same_host("cuda_ipc" if cuda_ipc else "shared_memory", transport.address)
        self._transport = transport
        self._header = header
        self._dtype = dtype
        self._cols = header.cols
        self._paired_cols = header.paired_cols
        weight_bytes = 4 if header.kind == calibration_pb2.WEIGHTED else 0
        row_bytes = (header.cols + header.paired_cols) * dtypes.ITEM_SIZE[dtype] + weight_bytes
        self._rows_a_chunk = max(1, chunk_bytes // row_bytes)
        slot_bytes = self._rows_a_chunk * row_bytes
        self._shared_slot_bytes = slot_bytes if shared_memory else 0
        self._device_memory: CudaRegion | None = None
        if cuda_ipc:
            slots = max(2, cuda_ipc_bytes // slot_bytes)
            self._device_memory = CudaRegion(self._tenant, cuda_device, slots, slot_bytes)
            header.cuda_ipc.CopyFrom(self._device_memory.message)
        self._backoff = Backoff(transport.retry_timeout_s)

        self._changed = threading.Condition()
        # All below is guarded by _changed.
        self._unsent: deque[_Chunk] = deque()  # on the present connection
        self._flying: deque[_Chunk] = deque()  # sent, not yet received
        self._received: deque[_Chunk] = deque()  # received, not yet durable
        self._flying_bytes = 0
        self._pending_bytes = 0  # of all three
        self._last_seq = 0  # of the last chunk that `send` made
        self._durable_seq = 0
        self._credit_bytes = 0
        self._answered = False  # the present connection's header
        self._flush_seq = 0  # everything up to here is wanted durable
        self._flushed_seq = 0  # and was asked for on the present connection
        self._closing = False
        self._connection = 0
        self._call: Any = None
        self._error: Error | None = None
        self._ended = False

        self._thread = threading.Thread(
            target=self._run, name=f"quantd-stream-{header.stream_id}", daemon=True
        )
        self._thread.start()

    # The caller's side.

    @property
    def durable_seq(self) -> int:
        """Sequence number of the last chunk that survives a crash of the server."""
        with self._changed:
            return self._durable_seq

    def send(
        self,
        rows: Any,
        *,
        token_weights: NDArray[Any] | None = None,
        paired: Any = None,
    ) -> None:
        """Adds activations, one token a row (tokens x C); converted to the stream's dtype.

        Waits while too much is in flight or not yet durable. With cuda_ipc rows and paired rows are
        contiguous arrays of that dtype on the GPU, which are copied there before this returns.

        Args:
            rows: x; of a cross or residual moment xhat.
            token_weights: of a weighted statistic: one a token, finite and >= 0; on the host.
            paired: of a cross moment x (tokens x C), of a residual moment r - rhat (tokens x R).

        Raises:
            InvalidArgument: not C columns, no floating-point type, or weights or paired rows that
                the statistic's kind does not take, or takes and are missing.
            Error: the stream has failed.

        """
        weighted = self._header.kind == calibration_pb2.WEIGHTED
        _check_given("token_weights", token_weights, weighted)
        _check_given("paired", paired, self._paired_cols > 0)
        tokens, chunk_of = (
            self._on_host(rows, paired)
            if self._device_memory is None
            else self._on_device(self._device_memory, rows, paired)
        )
        weights = None
        if token_weights is not None:
            weights = np.ascontiguousarray(token_weights, np.float32)
            if weights.shape != (tokens,):
                came = " x ".join(map(str, weights.shape))
                raise InvalidArgument(f"token_weights: expected {tokens}, one a token, came {came}")
        for start in range(0, tokens, self._rows_a_chunk):
            stop = min(start + self._rows_a_chunk, tokens)
            message = calibration_pb2.ActivationChunk(rows=stop - start)
            if weights is not None:
                message.token_weights.extend(weights[start:stop])
            self._enqueue(chunk_of(message, start, stop))

    def _on_host(self, rows: NDArray[Any], paired: NDArray[Any] | None) -> _Cut:
        if is_on_device(rows):
            raise InvalidArgument(
                "activations: expected an array on the host, or cuda_ipc for one on the GPU"
            )
        tokens = rows.shape[0] if rows.ndim else 0
        self._check("activations", rows, tokens, self._cols)
        encoded = dtypes.encode(rows, self._dtype)
        left = None
        if paired is not None:
            self._check("paired rows", paired, tokens, self._paired_cols)
            left = dtypes.encode(paired, self._dtype)

        def chunk(message: calibration_pb2.ActivationChunk, start: int, stop: int) -> _Chunk:
            pairs = b"" if left is None else left[start:stop].tobytes()
            return _HostChunk(message, encoded[start:stop].tobytes(), pairs)

        return tokens, chunk

    def _on_device(self, memory: CudaRegion, rows: Any, paired: Any) -> _Cut:
        data = DeviceRows.of("activations", rows, self._dtype, self._cols)
        pairs = None
        if paired is not None:
            pairs = DeviceRows.of("paired rows", paired, self._dtype, self._paired_cols)
            if pairs.rows != data.rows:
                raise InvalidArgument(
                    f"paired rows of {self._header.statistic}: expected {data.rows}, came"
                    f" {pairs.rows}"
                )
        for written in (data, pairs):
            if written is not None and written.size > 0:
                memory.wait_for(written)

        def chunk(message: calibration_pb2.ActivationChunk, start: int, stop: int) -> _Chunk:
            left = None if pairs is None else pairs.part(start, stop)
            return _DeviceChunk(message, data.part(start, stop), left, memory)

        return data.rows, chunk

    def flush(self) -> None:
        """Returns once everything sent so far is durable."""
        with self._changed:
            target = self._last_seq
            self._flush_seq = max(self._flush_seq, target)
            self._changed.notify_all()
            while self._durable_seq < target:
                self._raise_error()
                self._changed.wait()

    def close(self) -> None:
        """Ends the stream and returns once everything is durable."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._join()
        with self._changed:
            self._raise_error()

    def cancel(self) -> None:
        """Ends the stream at once; what is not durable may be lost."""
        with self._changed:
            if not self._ended and self._error is None:
                self._error = Error("the stream was cancelled", code="CANCELLED")
            call = self._call
            self._changed.notify_all()
        if call is not None:
            call.cancel()
        self._join()

    def _join(self) -> None:
        self._thread.join()
        if self._device_memory is not None:
            self._device_memory.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.cancel()

    def _check(self, what: str, rows: NDArray[Any], tokens: int, cols: int) -> None:
        if rows.ndim != 2 or rows.shape != (tokens, cols):
            came = " x ".join(map(str, rows.shape))
            raise InvalidArgument(
                f"{what} of {self._header.statistic}: expected"
                f" {'tokens' if what == 'activations' else tokens} x {cols}, came {came}"
            )

    def _enqueue(self, chunk: _Chunk) -> None:
        size = chunk.size
        with self._changed:
            self._raise_error()
            if self._closing:
                raise InvalidArgument("the stream is closed")
            seq = self._last_seq + 1
            while self._must_wait(seq, size):
                self._flush_seq = self._last_seq
                self._changed.notify_all()
                self._changed.wait()
                self._raise_error()
            self._last_seq = seq
            if seq <= self._durable_seq:
                return
        chunk.message.seq = seq
        chunk.seal()
        with self._changed:
            if seq > self._durable_seq:  # which may have grown meanwhile
                self._unsent.append(chunk)
                self._pending_bytes += size
                self._changed.notify_all()

    def _must_wait(self, seq: int, size: int) -> bool:
        """Until more is durable: no room for chunk `seq` yet."""
        if self._device_memory is not None:  # the chunk that has its slot
            return seq - self._device_memory.slots > self._durable_seq
        return self._pending_bytes > 0 and self._pending_bytes + size > PENDING_BYTES_MAX

    def _raise_error(self) -> None:
        if self._error is not None:
            raise self._error

    @property
    def _tenant(self) -> str:
        return self._header.statistic.split("/")[1]

    # The connection's side: one thread that reads the answers, and gRPC's own that pulls requests.

    def _run(self) -> None:
        stub = calibration_pb2_grpc.CalibrationStub(self._transport.channel)
        while True:
            with self._changed:
                if self._error is not None:
                    return
                self._connection += 1
                self._answered = False
            try:
                with self._new_region() as region:
                    self._exchange(stub, region)
                if self._finished():
                    return
                error: Error = Unavailable("the server ended the stream early")
            except grpc.RpcError as rpc_error:
                error = from_rpc_error(rpc_error)
            except Error as own:
                error = own
            except Exception as unexpected:  # a bug here must not leave callers waiting
                error = Error(f"{type(unexpected).__name__}: {unexpected}", code="INTERNAL")
            if not self._will_retry(error):
                return

    def _new_region(self) -> AbstractContextManager[SharedRegion | None]:
        """Every connection has its own, so that it shares no slot with one that is lost."""
        if self._shared_slot_bytes == 0:
            return nullcontext()
        return SharedRegion(self._tenant, _SHARED_SLOTS, self._shared_slot_bytes)

    def _exchange(
        self, stub: calibration_pb2_grpc.CalibrationStub, region: SharedRegion | None
    ) -> None:
        """One connection, to its end."""
        with self._changed:
            if self._error is not None:  # cancelled
                return
            self._call = call = self._transport.start(
                stub.StreamActivations, self._requests(self._connection, region)
            )
        for response in call:
            if region is not None:
                region.unlink()  # the server has it open
            self._on_response(response)

    def _requests(
        self, connection: int, region: SharedRegion | None
    ) -> Iterator[calibration_pb2.StreamActivationsRequest]:
        first = calibration_pb2.StreamActivationsRequest(header=self._header)
        if region is not None:
            first.header.shared_region = region.name
        yield first
        slots = None if region is None else region.slots
        while True:
            with self._changed:
                following = self._next(connection, slots)
                while following is None:
                    if self._must_stop(connection):
                        return
                    self._changed.wait()
                    following = self._next(connection, slots)
            if isinstance(following, Empty):
                yield calibration_pb2.StreamActivationsRequest(flush=following)
                continue
            request = following.request(region)
            if request is None:  # this connection is over
                return
            yield request

    def _must_stop(self, connection: int) -> bool:
        """Whether the sending side of this connection is over."""
        if connection != self._connection or self._error is not None or self._ended:
            return True
        return self._closing and self._answered and not self._unsent

    def _next(self, connection: int, slots: int | None) -> _Chunk | Empty | None:
        """What may go out now on this connection, if anything: a chunk or a flush."""
        if connection != self._connection or not self._answered or self._error is not None:
            return None
        if self._unsent:
            chunk = self._unsent[0]
            if self._flying and self._flying_bytes + chunk.size > self._credit_bytes:
                return None
            if slots is not None and len(self._flying) >= slots:
                return None
            self._flying.append(self._unsent.popleft())
            self._flying_bytes += chunk.size
            return chunk
        if self._flush_seq > max(self._flushed_seq, self._durable_seq):
            self._flushed_seq = self._flush_seq
            return Empty()
        return None

    def _on_response(self, response: calibration_pb2.StreamActivationsResponse) -> None:
        with self._changed:
            if not self._answered:
                self._answered = True
                self._resend_all()
            if response.durable_seq > self._durable_seq:
                self._durable_seq = response.durable_seq
                self._backoff.reset()
            self._credit_bytes = response.credit_bytes
            received_seq = max(response.received_seq, response.durable_seq)
            while self._flying and self._flying[0].seq <= received_seq:
                self._flying_bytes -= self._flying[0].size
                self._received.append(self._flying.popleft())
            for chunks in (self._received, self._unsent):
                while chunks and chunks[0].seq <= self._durable_seq:
                    self._pending_bytes -= chunks.popleft().size
            self._changed.notify_all()

    def _resend_all(self) -> None:
        """On a new connection: whatever is not durable has to be sent again, in order."""
        self._unsent = deque([*self._received, *self._flying, *self._unsent])
        self._received.clear()
        self._flying.clear()
        self._flying_bytes = 0
        self._flushed_seq = 0

    def _finished(self) -> bool:
        """After the server ended the call without an error: whether that was the end of it all."""
        with self._changed:
            self._ended = self._closing and self._durable_seq >= self._last_seq
            self._changed.notify_all()
            return self._ended

    def _will_retry(self, error: Error) -> bool:
        """Waits before a reconnect; False where the stream is over, with the error kept."""
        with self._changed:
            if self._error is not None:  # cancelled here
                return False
            try:
                if not is_transient_for_writer(error):
                    raise error
                delay_s = self._backoff.next_delay_s(error)
            except Error as final:
                self._error = final
                self._changed.notify_all()
                return False
            self._connection += 1  # stops the old connection's requests
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._error is not None, delay_s)
            return self._error is None


def make_header(
    statistic: str,
    stream_id: str,
    dtype: DType,
    cols: int,
    *,
    kind: StatisticKind,
    paired_cols: int,
    block_size: int | None,
    sample_rows: int | None,
    sample_seed: int,
) -> calibration_pb2.ActivationHeader:
    """The first message. block_size asks for a block-diagonal moment with blocks of that size.

    Raises:
        InvalidArgument: no such kind, or paired_cols that do not go with it.

    """
    if kind == "cross-moment":
        paired_cols = paired_cols or cols
    if (paired_cols > 0) != (kind in ("cross-moment", "residual-moment")):
        raise InvalidArgument(
            f"paired_cols: expected the columns of the paired rows for a residual moment, cols for"
            f" a cross moment and 0 otherwise, came {paired_cols} for {kind}"
        )
    header = calibration_pb2.ActivationHeader(
        statistic=statistic,
        stream_id=stream_id,
        dtype=dtypes.to_proto(dtype),
        cols=cols,
        kind=kind_to_proto(kind),
        paired_cols=paired_cols,
        layout=calibration_pb2.FULL if block_size is None else calibration_pb2.BLOCK_DIAGONAL,
        block_size=block_size or 0,
        sample_seed=sample_seed,
    )
    if sample_rows is not None:
        header.sample_rows = sample_rows
    return header


def _check_given(name: str, value: NDArray[Any] | None, expected: bool) -> None:
    if expected != (value is not None):
        raise InvalidArgument(
            f"{name}: expected {'an array' if expected else 'none'} for this kind of statistic,"
            f" came {'none' if value is None else 'one'}"
        )


def rows_of(arrays: Any | Iterable[Any]) -> Iterator[Any]:
    """One array, on the host or on a GPU, or any number of them, as an iterator."""
    if isinstance(arrays, np.ndarray) or is_on_device(arrays):
        yield arrays
    else:
        yield from arrays
