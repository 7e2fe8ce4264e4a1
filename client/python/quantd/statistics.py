"""Second moments and their relatives as arrays: accumulated here, imported, exported."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import google_crc32c
import grpc
import numpy as np
from numpy.typing import NDArray

from quantd.errors import (
    AlreadyExists,
    DataLoss,
    FailedPrecondition,
    InvalidArgument,
    from_rpc_error,
)
from quantd.progress import ProgressBar
from quantd.resources import (
    MomentLayout,
    Statistic,
    StatisticKind,
    kind_from_proto,
    kind_to_proto,
)
from quantd.transport import CHUNK_BYTES, Backoff, Transport, is_transient
from quantd.v1 import calibration_pb2, calibration_pb2_grpc, recipe_pb2

Normalization = Literal["sum", "mean"]


@dataclass(frozen=True)
class Moment:
    """A second moment of activations x, or another kind of moment.

    matrix: C x C (layout full) or C/B x B x B, the diagonal blocks (block-diagonal); R x C of a
      residual moment; float64 or float32.
    tokens: how many activations went in.
    normalization: "sum" over the tokens, or its "mean": divided by the tokens, of a weighted
      moment by weight_sum.
    sample: n x C float32, some of the tokens (at most 4096; of a cross or residual moment of xhat),
      on which activation quantization is measured; without any, the report leaves those figures
      out.
    kind: what was summed.
    weight_sum: of a weighted moment: the sum of the tokens' weights.
    """

    matrix: NDArray[Any]
    tokens: int
    normalization: Normalization = "sum"
    sample: NDArray[np.float32] | None = field(default=None)
    kind: StatisticKind = "second-moment"
    weight_sum: float = 0.0

    def __post_init__(self) -> None:
        shape = self.matrix.shape
        came = " x ".join(map(str, shape))
        if self.is_paired:
            if len(shape) != 2 or (self.kind == "cross-moment" and shape[0] != shape[1]):
                expected = "C x C" if self.kind == "cross-moment" else "R x C"
                raise InvalidArgument(f"{self.kind}: expected {expected}, came {came}")
        elif len(shape) not in (2, 3) or shape[-1] != shape[-2]:
            raise InvalidArgument(f"second moment: expected C x C or C/B x B x B, came {came}")
        if (self.weight_sum > 0) != (self.kind == "weighted"):
            raise InvalidArgument(
                f"weight_sum: expected {'more than 0' if self.kind == 'weighted' else '0'} for a"
                f" {self.kind}, came {self.weight_sum}"
            )
        sample = self.sample
        if sample is not None and (sample.ndim != 2 or sample.shape[1] != self.cols):
            came = " x ".join(map(str, sample.shape))
            raise InvalidArgument(f"sample: expected rows x {self.cols}, came {came}")

    @property
    def is_paired(self) -> bool:
        """Whether every token brought two rows."""
        return self.kind in ("cross-moment", "residual-moment")

    @property
    def layout(self) -> MomentLayout:
        """Full or block-diagonal."""
        return "full" if self.matrix.ndim == 2 else "block-diagonal"

    @property
    def cols(self) -> int:
        """C, the number of inputs."""
        shape = self.matrix.shape
        return int(shape[1] if len(shape) == 2 else shape[0] * shape[1])

    @property
    def block_size(self) -> int:
        """B of a block-diagonal moment, 0 otherwise."""
        return 0 if self.matrix.ndim == 2 else int(self.matrix.shape[1])

    def mean(self) -> NDArray[np.float64]:
        """E[x x^T] or what the kind makes of it, in the layout of `matrix`."""
        matrix = self.matrix.astype(np.float64)
        if self.normalization == "mean":
            return matrix
        return matrix / (self.weight_sum if self.kind == "weighted" else self.tokens)

    @classmethod
    def of(
        cls,
        activations: NDArray[Any],
        sample_rows: int = 512,
        seed: int = 0,
        *,
        token_weights: NDArray[Any] | None = None,
        paired: NDArray[Any] | None = None,
        kind: StatisticKind | None = None,
    ) -> Moment:
        """Accumulates tokens x C activations here, in float64, with a random sample of the rows.

        The last three arguments are those of `Client.stream_activations`.

        Raises:
            InvalidArgument: shapes that do not fit each other.

        """
        x = activations.astype(np.float64)
        generator = np.random.default_rng(seed)
        chosen = np.sort(generator.permutation(len(x))[:sample_rows])
        sample = activations[chosen].astype(np.float32)
        if kind is None:
            kind = "second-moment" if token_weights is None else "weighted"
        left = x
        weight_sum = 0.0
        if kind == "weighted":
            if token_weights is None or token_weights.shape != (len(x),):
                raise InvalidArgument(f"token_weights: expected {len(x)}, one a token")
            left = x * token_weights.astype(np.float64)[:, None]
            weight_sum = float(token_weights.astype(np.float64).sum())
        elif kind != "second-moment":
            if paired is None or paired.ndim != 2 or len(paired) != len(x):
                raise InvalidArgument(f"paired: expected {len(x)} rows, as the activations have")
            left = paired.astype(np.float64)
        return cls(left.T @ x, len(x), "sum", sample, kind, weight_sum)


def import_moment(
    transport: Transport, statistic: str, moment: Moment, show_progress: bool | None
) -> Statistic:
    """Stores `moment` as the sealed statistic of that full resource name."""
    double = moment.matrix.dtype != np.float32
    matrix = np.ascontiguousarray(moment.matrix, "<f8" if double else "<f4")
    sample = np.ascontiguousarray(
        np.empty((0, moment.cols), "<f4") if moment.sample is None else moment.sample, "<f4"
    )
    header = calibration_pb2.StatisticHeader(
        statistic=statistic,
        layout=(
            calibration_pb2.FULL if moment.layout == "full" else calibration_pb2.BLOCK_DIAGONAL
        ),
        block_size=moment.block_size,
        cols=moment.cols,
        dtype=recipe_pb2.F64 if double else recipe_pb2.F32,
        normalization=(
            calibration_pb2.SUM if moment.normalization == "sum" else calibration_pb2.MEAN
        ),
        tokens=moment.tokens,
        sample_rows=sample.shape[0],
        kind=kind_to_proto(moment.kind),
        paired_cols=moment.matrix.shape[0] if moment.is_paired else 0,
        weight_sum=moment.weight_sum,
    )
    data = matrix.tobytes() + sample.tobytes()
    stub = calibration_pb2_grpc.CalibrationStub(transport.channel)
    backoff = Backoff(transport.retry_timeout_s)
    repeated = False
    with ProgressBar(statistic.rsplit("/", 1)[-1], len(data), "B", show_progress) as bar:
        while True:
            try:
                return Statistic.from_proto(
                    transport.start(stub.ImportStatistic, _import_requests(header, data, bar))
                )
            except grpc.RpcError as rpc_error:
                error = from_rpc_error(rpc_error)
            if repeated and isinstance(error, AlreadyExists | FailedPrecondition):
                # An earlier attempt went through and only its answer was lost.
                request = calibration_pb2.GetStatisticRequest(name=statistic)
                stored = Statistic.from_proto(transport.call(stub.GetStatistic, request))
                if stored.sealed and (stored.cols, stored.tokens) == (moment.cols, moment.tokens):
                    return stored
            if not is_transient(error):
                raise error
            backoff.wait(error)
            repeated = True


def _import_requests(
    header: calibration_pb2.StatisticHeader, data: bytes, bar: ProgressBar
) -> Iterator[calibration_pb2.ImportStatisticRequest]:
    yield calibration_pb2.ImportStatisticRequest(header=header)
    for offset in range(0, len(data), CHUNK_BYTES):
        piece = data[offset : offset + CHUNK_BYTES]
        chunk = calibration_pb2.StatisticChunk(
            offset=offset, data=piece, crc32c=google_crc32c.value(piece)
        )
        yield calibration_pb2.ImportStatisticRequest(chunk=chunk)
        bar.move_to(offset + len(piece))
    finish = calibration_pb2.StatisticFinish(sha256=hashlib.sha256(data).digest())
    yield calibration_pb2.ImportStatisticRequest(finish=finish)


def export_moment(transport: Transport, statistic: str, show_progress: bool | None) -> Moment:
    """The statistic of that full resource name, verified.

    Raises:
        DataLoss: what arrived does not match its checksums.

    """
    backoff = Backoff(transport.retry_timeout_s)
    with ProgressBar(statistic.rsplit("/", 1)[-1], None, "B", show_progress) as bar:
        while True:  # there are no ranges of a statistic: a lost connection starts over
            try:
                return _export_once(transport, statistic, bar)
            except grpc.RpcError as rpc_error:
                error = from_rpc_error(rpc_error)
                if not is_transient(error):
                    raise error from None
                backoff.wait(error)


def _export_once(transport: Transport, statistic: str, bar: ProgressBar) -> Moment:
    stub = calibration_pb2_grpc.CalibrationStub(transport.channel)
    header: calibration_pb2.StatisticHeader | None = None
    finish: calibration_pb2.StatisticFinish | None = None
    data = bytearray()
    for response in transport.start(
        stub.ExportStatistic, calibration_pb2.ExportStatisticRequest(name=statistic)
    ):
        if response.HasField("header"):
            header = response.header
        elif response.HasField("chunk"):
            _append(data, response.chunk, statistic)
            bar.move_to(len(data))
        elif response.HasField("finish"):
            finish = response.finish
    if header is None or finish is None:
        raise DataLoss(f"{statistic}: the export ended early")
    if hashlib.sha256(data).digest() != finish.sha256:
        raise DataLoss(f"{statistic}: the bytes do not match their digest")
    return _to_moment(header, bytes(data), statistic)


def _append(data: bytearray, chunk: calibration_pb2.StatisticChunk, statistic: str) -> None:
    if chunk.offset != len(data) or google_crc32c.value(chunk.data) != chunk.crc32c:
        raise DataLoss(f"{statistic}: corrupt chunk at offset {chunk.offset}")
    data += chunk.data


def _to_moment(header: calibration_pb2.StatisticHeader, data: bytes, statistic: str) -> Moment:
    item = np.dtype("<f4" if header.dtype == recipe_pb2.F32 else "<f8")
    if header.layout == calibration_pb2.BLOCK_DIAGONAL:
        size = header.block_size
        shape: tuple[int, ...] = (header.cols // size, size, size)
    else:
        shape = (header.paired_cols or header.cols, header.cols)
    matrix_bytes = int(np.prod(shape)) * item.itemsize
    sample_bytes = header.sample_rows * header.cols * 4
    if len(data) != matrix_bytes + sample_bytes:
        expected = matrix_bytes + sample_bytes
        raise DataLoss(f"{statistic}: expected {expected} bytes, came {len(data)}")
    sample = np.frombuffer(data, "<f4", offset=matrix_bytes).reshape(-1, header.cols)
    return Moment(
        np.frombuffer(data[:matrix_bytes], item).reshape(shape),
        header.tokens,
        "mean" if header.normalization == calibration_pb2.MEAN else "sum",
        sample if header.sample_rows else None,
        kind_from_proto(header.kind),
        header.weight_sum,
    )
