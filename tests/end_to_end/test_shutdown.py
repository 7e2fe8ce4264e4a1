"""SIGTERM: health turns, new work is sent away, running work ends, the exit code is 0."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable

import grpc
import pytest
from quantd.v1 import jobs_pb2, recipe_pb2

from .refusal import Refusal, take_apart
from .server_process import Api, Server, eventually, seconds
from .wire import (
    BF16,
    F32,
    ActivationStream,
    activation_chunk,
    activation_header,
    activations_like,
    create_job,
    export_statistic,
    gaussian,
    get_job,
    get_statistic,
    layer,
    seal,
    sealed_statistic,
    upload,
    wait_for_job,
    wait_for_state,
    watch,
)

SLOW = recipe_pb2.Recipe(
    format=recipe_pb2.NVFP4, transform=recipe_pb2.WUSH, solver=recipe_pb2.CONDITIONAL
)
ROWS = COLS = 1024


def _busy_job(server: Server, count: int = 3) -> jobs_pb2.Job:
    """A job whose layers take a while, with its first layer running."""
    statistic = sealed_statistic(server.api, "s", activations_like(256, COLS, 1), BF16).name
    job = create_job(
        server.api,
        [layer(f"l{n}", ROWS, COLS, statistic=statistic) for n in range(count)],
        SLOW,
    )
    weight = gaussian(ROWS, COLS, 1)
    for described in job.layers:
        upload(server.api, described.name, weight, chunk_bytes=1 << 20)
    wait_for_state(server.api, job.name, jobs_pb2.RUNNING, jobs_pb2.SUCCEEDED)
    return job


def test_idle_server_ends_at_once(start_server: Callable[..., Server]) -> None:
    server = start_server()
    server.terminate()
    assert server.wait(within=5) == 0


def test_interrupt_ends_it_too(start_server: Callable[..., Server]) -> None:
    server = start_server()
    assert server.process is not None
    server.process.send_signal(signal.SIGINT)
    assert server.wait(within=10) == 0


def test_drain(start_server: Callable[..., Server]) -> None:
    """While a layer runs on: NOT_SERVING, streams and uploads are sent elsewhere with a delay to
    retry after, what is open ends in order, the running layer's result is kept."""
    server = start_server()
    waiting = create_job(server.api, [layer("w", 8, 64)]).layers[0].name
    job = _busy_job(server)
    probe = server.connect()
    assert probe.health() == "SERVING"  # connected before the signal
    assert server.probe("/readyz") == (200, "ready\n")
    open_stream = ActivationStream(probe, activation_header("tenants/default/statistics/open", 64))
    open_stream.send(activation_chunk(1, activations_like(8, 64, 1)))
    open_stream.wait_received(1)

    server.terminate()
    observed: list[str] = []
    refusals: list[Refusal] = []
    probes: list[tuple[tuple[int, str], tuple[int, str]]] = []

    def drained() -> bool:
        try:
            observed.append(probe.health())
        except grpc.RpcError:
            return True
        if observed[-1] != "NOT_SERVING":
            return False
        with contextlib.suppress(OSError):
            probes.append((server.probe("/readyz"), server.probe("/healthz")))
        for attempt in (
            lambda: ActivationStream(
                probe, activation_header("tenants/default/statistics/new", 64)
            ),
            lambda: upload(probe, waiting, gaussian(8, 64, 1)),
        ):
            try:
                attempt()
            except grpc.RpcError as error:
                if error.code() is grpc.StatusCode.UNAVAILABLE and error.trailing_metadata():
                    refusals.append(take_apart(error))
        return True

    eventually(drained, "health says NOT_SERVING", 10)
    assert "NOT_SERVING" in observed, observed
    assert refusals, "no stream was refused during the drain"
    assert ((503, "not ready: draining\n"), (200, "alive\n")) in probes
    for refusal in refusals:
        assert refusal.reason == "DRAINING"
        assert refusal.retry_seconds is not None and refusal.retry_seconds > 0
    with pytest.raises(grpc.RpcError) as caught:
        open_stream.error()
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert open_stream.last.durable_seq == 1  # what was received has become durable
    assert server.wait() == 0

    server.restart()
    assert get_statistic(server.api, "tenants/default/statistics/open").tokens == 8
    assert wait_for_job(server.api, job.name, 60).state == jobs_pb2.SUCCEEDED


def test_watchers_are_told(start_server: Callable[..., Server]) -> None:
    """A watch ends with UNAVAILABLE, so that a client reconnects; it does not hang."""
    server = start_server()
    job = create_job(server.api, [layer("w", 8, 64)])
    responses = watch(server.api, job.name)
    next(iter(responses))
    outcome: list[grpc.StatusCode] = []

    def follow() -> None:
        try:
            list(responses)
        except grpc.RpcError as error:
            outcome.append(error.code())

    follower = threading.Thread(target=follow)
    follower.start()
    server.terminate()
    assert server.wait(within=10) == 0
    follower.join(seconds(5))
    assert outcome == [grpc.StatusCode.UNAVAILABLE]
    server.restart()
    assert get_job(server.api, job.name).state == jobs_pb2.ACCEPTING


def test_grace_period_ends(start_server: Callable[..., Server]) -> None:
    """Work that does not fit into drain_seconds is left for the next start; the exit stays 0."""
    server = start_server(config="drain_seconds: 1")
    job = _busy_job(server, count=12)
    server.terminate()
    assert server.wait(within=10) == 0
    server.restart()
    server.api.jobs.CancelJob(jobs_pb2.CancelJobRequest(name=job.name))
    ended = wait_for_job(server.api, job.name)
    assert ended.state in (jobs_pb2.CANCELLED, jobs_pb2.SUCCEEDED)


def test_second_signal_changes_nothing(start_server: Callable[..., Server]) -> None:
    server = start_server()
    _busy_job(server, count=1)
    server.terminate()
    server.terminate()
    assert server.wait() == 0


def test_stream_over_a_restart_is_bit_for_bit(start_server: Callable[..., Server]) -> None:
    """An orderly stop in the middle of a stream, seen by the sum: not at all."""
    server = start_server()
    values = activations_like(96, 64, 5)
    expected = sealed_statistic(server.api, "undisturbed", values, chunk_rows=16)
    name = server.api.statistic_name("interrupted")
    chunks = [activation_chunk(n + 1, values[16 * n : 16 * n + 16]) for n in range(6)]
    stream = ActivationStream(server.api, activation_header(name, 64, dtype=F32))
    stream.send(*chunks[:3])
    stream.wait_received(3)
    server.terminate()
    with pytest.raises(grpc.RpcError):
        stream.error()
    assert server.wait() == 0
    server.restart()
    stream = ActivationStream(server.api, activation_header(name, 64, dtype=F32))
    assert stream.opened.durable_seq == 3
    stream.send(*chunks[3:])
    stream.finish()
    assert seal(server.api, name).digest == expected.digest
    assert (
        export_statistic(server.api, name).data == export_statistic(server.api, expected.name).data
    )


def test_clients_that_hold_on_do_not_hold_the_server(start_server: Callable[..., Server]) -> None:
    server = start_server()
    apis = [Api(server.address) for _ in range(20)]
    streams = [
        ActivationStream(api, activation_header(f"tenants/default/statistics/s{n}", 64))
        for n, api in enumerate(apis)
    ]
    server.terminate()
    assert server.wait(within=15) == 0
    for stream in streams:
        stream.cancel()
    for api in apis:
        api.close()
