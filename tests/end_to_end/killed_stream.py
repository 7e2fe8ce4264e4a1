"""An activation stream to a server that is killed again and again."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import grpc
import pytest
from quantd.v1 import calibration_pb2

from .server_process import Server
from .wire import ActivationStream, get_statistic, seal


def stream_through_kills(
    server: Server,
    header: calibration_pb2.ActivationHeader,
    chunks: Sequence[calibration_pb2.ActivationChunk],
    stops: Iterable[int],
) -> calibration_pb2.Statistic:
    """Kills the server when it has received all chunks but the last of the first `stop`, then
    resends what was not durable, for each of `stops`. Returns the sealed statistic."""
    acknowledged = 0
    for stop in stops:
        stream = ActivationStream(server.api, header)
        assert stream.opened.durable_seq >= acknowledged
        stream.send(*chunks[stream.opened.durable_seq : stop])
        stream.wait_received(stop - 1)
        acknowledged = stream.last.durable_seq
        server.kill()
        with pytest.raises(grpc.RpcError):
            stream.error()
        server.restart()
        durable = get_statistic(server.api, header.statistic).tokens
        assert durable >= sum(chunk.rows for chunk in chunks[:acknowledged])
    stream = ActivationStream(server.api, header)
    # A careful client resends from what it was told; a careless one may send everything again.
    stream.send(*chunks)
    assert stream.finish().durable_seq == len(chunks)
    return seal(server.api, header.statistic)
