"""HAProxy in front: everything works through it, and attacks end at it."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest
from quantd.v1 import jobs_pb2
from reliability.http2_attacks import ATTACKS

from .edge import Edge, probe
from .server_process import REPOSITORY, Api, Server, eventually, seconds
from .wire import (
    activations_like,
    create_job,
    gaussian,
    layer,
    list_artifacts,
    read_artifact,
    seal,
    stream_activations,
    upload,
    wait_for_job,
)

# A person's patience, many times what it takes; an attacked server without an edge needs longer.
PATIENCE_SECONDS = 20.0
LIMITS = {"QUANTD_EDGE_CALLS_PER_10S": 1000, "QUANTD_EDGE_DROP_PER_10S": 1500}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    started = Server(tmp_path_factory.mktemp("edge") / "data").start()
    yield started
    started.stop()


@pytest.fixture(scope="module")
def edge(tmp_path_factory: pytest.TempPathFactory, server: Server) -> Iterator[Edge]:
    started = Edge(tmp_path_factory.mktemp("haproxy"), server, LIMITS)
    yield started
    started.stop()


@pytest.fixture
def api(edge: Edge) -> Iterator[Api]:
    made = Api(edge.address, tls=edge.credentials())
    yield made
    made.close()


def test_a_job_through_the_edge(api: Api) -> None:
    values = activations_like(512, 64, 1)
    name = api.statistic_name("edge")
    stream_activations(api, name, values)
    seal(api, name)
    job = create_job(api, [layer("w", 2048, 64, statistic=name)])
    upload(api, job.layers[0].name, gaussian(2048, 64, 1))
    assert wait_for_job(api, job.name).state == jobs_pb2.SUCCEEDED
    for artifact in list_artifacts(api, job.name):
        assert read_artifact(api, f"{job.name}/artifacts/{artifact}")


def test_errors_come_through_whole(api: Api) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        api.jobs.GetJob(jobs_pb2.GetJobRequest(name="tenants/default/jobs/none"))
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    assert any(key == "grpc-status-details-bin" for key, _ in caught.value.trailing_metadata())


@pytest.mark.parametrize("path", ["/metrics", "/other.Service/Method", "/"])
def test_other_paths_end_at_the_edge(api: Api, path: str) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        api.channel.unary_unary(path)(b"")
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED  # HTTP 404, in gRPC's words


@pytest.mark.parametrize(("number", "kind"), list(enumerate(ATTACKS)))
def test_attack(edge: Edge, server: Server, number: int, kind: str) -> None:
    """While it lasts, somebody else gets answers, and quantd does not grow."""
    before = server.resident_bytes()
    process = subprocess.Popen(
        [
            *[sys.executable, "-m", "reliability.http2_attacks", kind, edge.address, "2"],
            *["--tls", str(edge.ca_file), "--from", f"127.0.1.{number + 1}"],
        ],
        cwd=REPOSITORY / "tests",
        stdout=subprocess.PIPE,
        text=True,
    )
    probes = []
    while process.poll() is None:
        probes.append(edge.probe())
        time.sleep(0.2)  # the edge limits the connections of an address
    output, _ = process.communicate(timeout=seconds(30))
    assert process.returncode == 0
    assert '"bytes": ' in output
    assert probes and all(took is not None and took < PATIENCE_SECONDS for took in probes)
    assert server.resident_bytes() - before < 100 << 20
    assert probe(server.address, None) is not None


def test_too_many_calls_are_answered_at_the_edge(
    start_edge: Callable[..., Edge],
) -> None:
    """Unavailable, so that a client tries again."""
    small = start_edge({"QUANTD_EDGE_CALLS_PER_10S": 50, "QUANTD_EDGE_DROP_PER_10S": 100000})
    api = Api(small.address, tls=small.credentials())
    call = api.channel.unary_unary("/quantd.v1.Server/GetServerInfo")
    codes: list[grpc.StatusCode | None] = []
    for _ in range(120):
        try:
            call(b"")
            codes.append(None)
        except grpc.RpcError as error:
            codes.append(error.code())
    api.close()
    assert codes[0] is None
    assert codes[-1] is grpc.StatusCode.UNAVAILABLE
    assert codes.count(None) <= 60


@pytest.fixture
def start_edge(tmp_path: Path, server: Server) -> Iterator[Callable[..., Edge]]:
    started: list[Edge] = []

    def start(limits: dict[str, int]) -> Edge:
        started.append(Edge(tmp_path / f"edge-{len(started)}", server, limits))
        return started[-1]

    yield start
    for one in started:
        one.stop()


def test_too_many_connections_are_refused(start_edge: Callable[..., Edge]) -> None:
    small = start_edge({"QUANTD_EDGE_CONNECTIONS": 5})
    apis = [Api(small.address, tls=small.credentials()) for _ in range(20)]

    def answered() -> int:
        count = 0
        for api in apis:
            try:
                api.channel.unary_unary("/grpc.health.v1.Health/Check")(b"")
                count += 1
            except grpc.RpcError as error:
                assert error.code() is grpc.StatusCode.UNAVAILABLE
        return count

    assert 1 <= answered() <= 5
    for api in apis:
        api.close()
    eventually(lambda: small.probe() is not None, "places are free again")
