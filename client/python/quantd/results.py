"""Downloading of artifacts: in pieces, verified, continued after a lost connection."""

from __future__ import annotations

import hashlib

import google_crc32c
import grpc

from quantd.errors import DataLoss, from_rpc_error
from quantd.progress import ProgressBar
from quantd.transport import Backoff, Transport, is_transient
from quantd.v1 import results_pb2, results_pb2_grpc


def read_artifact(transport: Transport, name: str, show_progress: bool | None) -> bytes:
    """The whole artifact of that full resource name.

    Raises:
        NotFound: no such artifact.
        DataLoss: what arrived does not match its checksums.
        Error: what else the server answered.

    """
    stub = results_pb2_grpc.ResultsStub(transport.channel)
    data = bytearray()
    size_bytes: int | None = None
    sha256 = b""
    backoff = Backoff(transport.retry_timeout_s)
    with ProgressBar(name.rsplit("/", 1)[-1], None, "B", show_progress) as bar:
        while size_bytes is None or len(data) < size_bytes:
            request = results_pb2.ReadArtifactRequest(name=name, read_offset=len(data))
            before = len(data)
            try:
                for response in transport.start(stub.ReadArtifact, request):
                    if response.offset != len(data):
                        raise DataLoss(
                            f"{name}: expected offset {len(data)}, came {response.offset}"
                        )
                    if google_crc32c.value(response.data) != response.crc32c:
                        raise DataLoss(f"{name}: corrupt chunk at offset {response.offset}")
                    data += response.data
                    size_bytes = response.size_bytes
                    sha256 = response.sha256 or sha256
                    bar.advance(len(response.data))
                if size_bytes is None or len(data) < size_bytes:
                    raise DataLoss(f"{name}: the download ended early, at {len(data)} bytes")
            except grpc.RpcError as rpc_error:
                error = from_rpc_error(rpc_error)
                if not is_transient(error):
                    raise error from None
                if len(data) > before:
                    backoff.reset()
                backoff.wait(error)
    if sha256 and hashlib.sha256(data).digest() != sha256:
        raise DataLoss(f"{name}: the bytes do not match their digest")
    return bytes(data)
