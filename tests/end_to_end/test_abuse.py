"""Clients that misbehave: bounded in what they hold, and no burden to the others."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from quantd.v1 import calibration_pb2, jobs_pb2, server_pb2, weights_pb2
from reliability.abuse import HealthyClient, SlowClients, _open_streams, send_random_names

from .prometheus_text import parse
from .refusal import refused, unharmed
from .server_process import Server, eventually, seconds
from .wire import (
    F64,
    ActivationStream,
    OpenUpload,
    activation_chunk,
    activation_header,
    activations_like,
    create_job,
    delete_job,
    get_statistic,
    import_requests,
    layer,
    stream_activations,
    upload_status,
    works,
)

COLS = 64


def descriptor_limit(server: Server) -> tuple[int, int]:
    lines = Path(f"/proc/{server.pid}/limits").read_text().splitlines()
    line = next(line for line in lines if line.startswith("Max open files"))
    return int(line.split()[3]), int(line.split()[4])


def test_descriptors_are_raised_to_what_is_allowed(start_server: Callable[..., Server]) -> None:
    """A listener without descriptors never accepts again."""
    server = start_server(wrapper=["sh", "-c", 'ulimit -Sn 100; eval exec "$0"'])
    soft, hard = descriptor_limit(server)
    assert soft == hard > 100


# ---- streams that send nothing ---------------------------------------------------------------


@pytest.fixture(scope="module")
def impatient(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    started = Server(
        tmp_path_factory.mktemp("impatient") / "data",
        config="limits { idle_stream_seconds: 1 max_streams_per_tenant: 2 }",
    ).start()
    yield started
    started.stop()


def test_idle_activation_stream(impatient: Server) -> None:
    """It ends, what it sent is durable, and its place is free."""
    name = impatient.api.statistic_name("idle")
    stream = ActivationStream(impatient.api, activation_header(name, COLS))
    stream.send(activation_chunk(1, np.ones((4, COLS))))
    with refused("UNAVAILABLE", "STREAM_IDLE") as refusal:
        while True:
            stream.read()
    assert refusal.retry_seconds is not None
    assert get_statistic(impatient.api, name).tokens == 4
    again = ActivationStream(impatient.api, activation_header(name, COLS))
    assert again.opened.durable_seq == 1
    again.send(activation_chunk(2, np.ones((4, COLS))))
    assert again.finish().durable_seq == 2


def test_idle_upload(impatient: Server) -> None:
    job = create_job(impatient.api, [layer("w", 64, COLS)])
    open_upload = OpenUpload(impatient.api, job.layers[0].name, 64, COLS)
    eventually(open_upload.ended, "the upload is ended")
    assert upload_status(impatient.api, job.layers[0].name).committed_size == 0
    delete_job(impatient.api, job.name)


@pytest.mark.parametrize(
    "path",
    ["Calibration/StreamActivations", "Weights/UploadWeights", "Calibration/ImportStatistic"],
)
def test_a_stream_that_never_begins(impatient: Server, path: str) -> None:
    wait = _Forever()
    call = impatient.api.channel.stream_stream(f"/quantd.v1.{path}")(wait)
    with refused("UNAVAILABLE", "STREAM_IDLE"):
        list(call)
    wait.stop = True


class _Forever:
    """An iterator of requests that yields none."""

    stop = False

    def __iter__(self) -> _Forever:
        return self

    def __next__(self) -> bytes:
        while not self.stop:
            time.sleep(0.01)
        raise StopIteration


def test_a_slow_stream_is_not_idle(impatient: Server) -> None:
    """Half a second between messages, for longer than the timeout."""
    name = impatient.api.statistic_name("slow")
    stream = ActivationStream(impatient.api, activation_header(name, COLS))
    for seq in range(1, 5):
        time.sleep(0.5)
        stream.send(activation_chunk(seq, np.ones((4, COLS))))
    assert stream.finish().durable_seq == 4


# ---- rates and numbers -----------------------------------------------------------------------


def test_message_rate(start_server: Callable[..., Server]) -> None:
    """Over it: refused with a time to come back, and then served."""
    server = start_server(config="limits { max_messages_per_second: 10 }")
    codes = []
    for _ in range(60):
        try:
            server.api.server.GetServerInfo(server_pb2.GetServerInfoRequest())
            codes.append("OK")
        except grpc.RpcError as error:
            codes.append(error.code().name)
    assert codes[0] == "OK" and "RESOURCE_EXHAUSTED" in codes
    with refused("RESOURCE_EXHAUSTED", "MESSAGE_RATE", says=["10"]) as refusal:
        for _ in range(60):
            server.api.server.GetServerInfo(server_pb2.GetServerInfoRequest())
    assert refusal.retry_seconds is not None and 0 < refusal.retry_seconds <= 0.2
    assert any("tenants/default" in quota for quota in refusal.quota)
    eventually(lambda: _answers(server), "served again")


def _answers(server: Server) -> bool:
    try:
        server.api.server.GetServerInfo(server_pb2.GetServerInfoRequest())
    except grpc.RpcError:
        return False
    return True


def test_message_rate_within_a_stream(start_server: Callable[..., Server]) -> None:
    """The stream ends, and goes on where it was: nothing acknowledged is lost or counted twice."""
    server = start_server(config="limits { max_messages_per_second: 20 }")
    name = server.api.statistic_name("fast")
    values = activations_like(100, COLS, 1)
    sent, refusals = 0, 0
    while sent < 100:
        try:
            stream = ActivationStream(server.api, activation_header(name, COLS))
            sent = stream.opened.durable_seq
            for seq in range(sent + 1, 101):
                stream.send(activation_chunk(seq, values[seq - 1 : seq]))
            sent = stream.finish().durable_seq
        except grpc.RpcError as error:
            assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            refusals += 1
            time.sleep(0.5)
    assert refusals > 0
    eventually(lambda: _tokens(server, name) == 100, "every token counts once")


def _tokens(server: Server, name: str) -> int:
    try:
        return get_statistic(server.api, name).tokens
    except grpc.RpcError:
        return -1


def test_one_tenants_rate_is_not_the_others(start_server: Callable[..., Server]) -> None:
    def tenant(name: str, more: str = "") -> str:
        digest = hashlib.sha256(name.encode()).hexdigest()
        return f'tenants {{ name: "{name}" token_sha256: "{digest}" {more} }}'

    config = "\n".join([tenant("small", "max_messages_per_second: 5 max_calls: 1"), tenant("big")])
    server = start_server(config=config)
    small, big = server.connect("small", "small"), server.connect("big", "big")
    with refused("RESOURCE_EXHAUSTED", "MESSAGE_RATE"):
        for _ in range(60):
            small.server.GetServerInfo(server_pb2.GetServerInfoRequest())
    for _ in range(60):
        big.server.GetServerInfo(server_pb2.GetServerInfoRequest())


def test_calls_at_once(start_server: Callable[..., Server]) -> None:
    server = start_server(config="limits { max_calls_per_tenant: 3 max_streams_per_tenant: 10 }")
    name = server.api.statistic_name("many")
    streams = [
        ActivationStream(server.api, activation_header(name, COLS, stream_id=f"s{n}"))
        for n in range(3)
    ]
    with refused("RESOURCE_EXHAUSTED", "TOO_MANY_CALLS", says=[3]) as refusal:
        server.api.server.GetServerInfo(server_pb2.GetServerInfoRequest())
    assert refusal.retry_seconds is not None
    for stream in streams:
        stream.finish()
    eventually(lambda: _answers(server), "the places are free again")
    works(server.api)


def test_quantctl_comes_back_to_a_limit(
    start_server: Callable[..., Server], quantctl: Callable[..., Any]
) -> None:
    """Refused at the number of calls, it waits as the server says and gets through after that."""
    server = start_server(config="limits { max_calls_per_tenant: 1 }")
    stream = ActivationStream(
        server.api, activation_header(server.api.statistic_name("holds-the-place"), COLS)
    )

    def refusals() -> float:
        return parse(server.metrics()).value(
            "quantd_rejected_requests_total", reason="TOO_MANY_CALLS"
        )

    with ThreadPoolExecutor(1) as pool:
        shown = pool.submit(quantctl, "--server", server.address, "statistics")
        eventually(lambda: refusals() > 0, "it has been refused")
        assert not shown.done()
        stream.finish()
        done = shown.result(timeout=seconds(30))
    assert done.returncode == 0, done.stderr
    stream = ActivationStream(
        server.api, activation_header(server.api.statistic_name("holds-it-again"), COLS)
    )
    at_once = quantctl("--server", server.address, "--retry_for", "0", "statistics")
    assert at_once.returncode != 0 and "calls are open" in at_once.stderr
    stream.finish()


# ---- bytes in flight -------------------------------------------------------------------------


def test_streams_share_the_bytes_in_flight(start_server: Callable[..., Server]) -> None:
    """A total that is less than what the streams send at once: all get through, in turn."""
    server = start_server(config="limits { max_inflight_bytes: 1048576 }")
    values = activations_like(4096, COLS, 1)

    def run(number: int) -> str:
        api = server.connect()
        name = api.statistic_name(f"inflight-{number}")
        stream_activations(api, name, values, chunk_rows=512)
        return name

    with ThreadPoolExecutor(8) as pool:
        for name in pool.map(run, range(8)):
            assert get_statistic(server.api, name).tokens == 4096
    works(server.api)


def test_imports_are_bounded_together(start_server: Callable[..., Server]) -> None:
    """They are in memory until they are whole: what does not fit is refused, with a time."""
    server = start_server(config="limits { max_inflight_bytes: 1048576 }")
    with refused("RESOURCE_EXHAUSTED", "TOO_MANY_BYTES_IN_FLIGHT") as refusal:
        _import(server, "too-large", 512)
    assert refusal.retry_seconds is not None
    assert _import(server, "fits", 64).tokens == 1


def _import(server: Server, name: str, cols: int) -> calibration_pb2.Statistic:
    header = calibration_pb2.StatisticHeader(
        statistic=server.api.statistic_name(name),
        cols=cols,
        dtype=F64,
        tokens=1,
        normalization=calibration_pb2.SUM,
    )
    requests = import_requests(header, np.eye(cols).tobytes())
    return server.api.calibration.ImportStatistic(requests)


# ---- many, slow and unheard of ---------------------------------------------------------------


def test_idle_streams_are_small(start_server: Callable[..., Server]) -> None:
    count = 500  # ./dev reliability abuse idle_streams: 10,000
    server = start_server(config=f"limits {{ max_streams_per_tenant: {count} }}")
    before = server.resident_bytes()

    async def grown() -> int:
        channels, calls = await _open_streams(server.address, count)
        difference = server.resident_bytes() - before
        for call in calls:
            call.cancel()
        for channel in channels:
            await channel.close()
        return difference

    assert asyncio.run(grown()) < 40_000 * count
    works(server.api)


def test_slow_clients_do_not_stop_a_healthy_one(start_server: Callable[..., Server]) -> None:
    server = start_server()
    slow = SlowClients(server.address, 50)
    healthy = HealthyClient(server, "healthy")
    for _ in range(20):
        healthy.latency()
    healthy.close()
    slow.close()
    works(server.api)


def _series(server: Server) -> set[str]:
    lines = [line for line in server.metrics().splitlines() if line[:1] not in ("", "#")]
    return {line.rsplit(" ", 1)[0] for line in lines}


def test_random_names_make_no_metrics(start_server: Callable[..., Server]) -> None:
    server = start_server()
    send_random_names(server.address, 500, seed=1)
    known = _series(server)
    send_random_names(server.address, 3000, seed=2)
    assert _series(server) == known
    works(server.api)


def test_a_compressed_message_is_not_unpacked(start_server: Callable[..., Server]) -> None:
    """A megabyte of letters in a kilobyte: refused, whatever they would say."""
    server = start_server()
    name = jobs_pb2.GetJobRequest(name="a" * (1 << 20)).SerializeToString()
    plain = server.api.channel.unary_unary("/quantd.v1.Jobs/GetJob")
    with refused("INVALID_ARGUMENT"):
        plain(name)
    with pytest.raises(grpc.RpcError) as caught:
        plain(name, compression=grpc.Compression.Gzip)
    # From the library: our own answer, as above, would have needed the letters.
    assert caught.value.code() in (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNIMPLEMENTED)
    works(server.api)


def test_requests_are_kept_apart(start_server: Callable[..., Server]) -> None:
    """A message that is too large ends its own call alone."""
    server = start_server()
    chunk = weights_pb2.UploadWeightsRequest(chunk=weights_pb2.UploadChunk(data=bytes(5 << 20)))
    with pytest.raises(grpc.RpcError) as caught:
        server.api.weights.UploadWeights(iter([chunk]))
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    works(server.api)


def test_what_does_not_parse_leaves_no_line_in_the_log(server: Server) -> None:
    """Neither lines nor bytes of a client's choice, however often it sends them."""
    before = len(server.stderr)
    not_utf8 = b"\x0a\x04ab\xff\xfe"  # of a field `name`
    with unharmed(server), grpc.insecure_channel(server.address) as channel:
        get_job = channel.unary_unary(
            "/quantd.v1.Jobs/GetJob",
            request_serializer=lambda raw: raw,
            response_deserializer=lambda raw: raw,
        )
        for _ in range(50):
            with pytest.raises(grpc.RpcError):
                get_job(not_utf8, timeout=10)
    assert not [line for line in server.stderr[before:] if "UTF-8" in line or "protobuf" in line]
