"""Upload of one weight matrix: chunked, checksummed, resumed where the server left off."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import google_crc32c
import grpc
import numpy as np
from numpy.typing import NDArray

from quantd import dtypes
from quantd.dtypes import DType
from quantd.errors import DataLoss, InvalidArgument, from_rpc_error
from quantd.progress import ProgressBar
from quantd.transport import CHUNK_BYTES, Backoff, Transport, is_transient_for_writer
from quantd.v1 import weights_pb2, weights_pb2_grpc


def upload(
    transport: Transport,
    layer: str,
    array: NDArray[Any],
    dtype: DType | None,
    show_progress: bool | None,
) -> None:
    """Uploads `array` (R x C) as the weight of `layer`, a full resource name.

    Continues an interrupted upload. Returns once the server holds all of it durably.

    Raises:
        InvalidArgument: not a matrix, or not what the job declares.
        Error: what else the server answered.

    """
    if array.ndim != 2:
        raise InvalidArgument(f"weight: expected a matrix (rank 2), came rank {array.ndim}")
    dtype = dtype or dtypes.natural_dtype(array)
    encoded = dtypes.encode(array, dtype)
    data = encoded.reshape(-1).view(np.uint8).data
    header = weights_pb2.UploadHeader(
        layer=layer, dtype=dtypes.to_proto(dtype), rows=array.shape[0], cols=array.shape[1]
    )
    sha256 = hashlib.sha256(data).digest()
    stub = weights_pb2_grpc.WeightsStub(transport.channel)
    backoff = Backoff(transport.retry_timeout_s)
    last_committed = -1
    with ProgressBar(layer.rsplit("/", 1)[-1], len(data), "B", show_progress) as bar:
        while True:
            status = transport.call(
                stub.GetUploadStatus, weights_pb2.GetUploadStatusRequest(layer=layer)
            )
            if status.complete:
                return
            if status.committed_size > last_committed >= 0:
                backoff.reset()
            last_committed = status.committed_size
            try:
                transport.start(
                    stub.UploadWeights, _requests(header, data, status.committed_size, sha256, bar)
                )
                return
            except grpc.RpcError as rpc_error:
                error = from_rpc_error(rpc_error)
                # What was there before did not belong to this matrix: the server has dropped it.
                stale = isinstance(error, DataLoss) and status.committed_size > 0
                if not stale and not is_transient_for_writer(error):
                    raise error from None
                backoff.wait(error)


def _requests(
    header: weights_pb2.UploadHeader,
    data: memoryview,
    committed_size: int,
    sha256: bytes,
    bar: ProgressBar,
) -> Iterator[weights_pb2.UploadWeightsRequest]:
    yield weights_pb2.UploadWeightsRequest(header=header)
    for offset in range(committed_size, len(data), CHUNK_BYTES):
        piece = bytes(data[offset : offset + CHUNK_BYTES])
        chunk = weights_pb2.UploadChunk(
            offset=offset, data=piece, crc32c=google_crc32c.value(piece)
        )
        yield weights_pb2.UploadWeightsRequest(chunk=chunk)
        bar.move_to(offset + len(piece))
    yield weights_pb2.UploadWeightsRequest(finish=weights_pb2.UploadFinish(sha256=sha256))
