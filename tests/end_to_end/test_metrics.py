"""/metrics: promtool's opinion, a real Prometheus's scrape, and numbers that move with work."""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import re
import socket
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
from quantd.v1 import jobs_pb2, recipe_pb2
from reliability.supervisor import failpoint_names

from .conftest import REPOSITORY
from .prometheus_server import Prometheus, running_prometheus
from .prometheus_text import Scrape, parse
from .server_process import Server, eventually, seconds
from .wire import (
    BF16,
    ActivationStream,
    activation_chunk,
    activation_header,
    activations_like,
    create_job,
    delete_job,
    encode,
    gaussian,
    get_job,
    layer,
    list_artifacts,
    read_artifact,
    sealed_statistic,
    upload,
    wait_for_job,
    watch,
)

COLS = 64


def _scrape(server: Server) -> Scrape:
    return parse(server.metrics())


def _wait_for(server: Server, name: str, before: Scrape, more: float, **labels: str) -> None:
    """Counts follow what a client sees at once, but not before it does."""
    eventually(
        lambda: _scrape(server).value(name, **labels) >= before.value(name, **labels) + more,
        f"{name} has risen by {more}",
    )


@pytest.fixture(scope="module")
def worked(server: Server) -> Server:
    """A server that has done some of everything, so that most metrics have samples."""
    statistic = sealed_statistic(server.api, "worked", activations_like(64, COLS, 1)).name
    job = create_job(
        server.api,
        [layer("w", 16, COLS, statistic=statistic)],
        recipe_pb2.Recipe(format=recipe_pb2.MXFP4, transform=recipe_pb2.WUSH),
    )
    upload(server.api, job.layers[0].name, gaussian(16, COLS, 1))
    assert wait_for_job(server.api, job.name).state == jobs_pb2.SUCCEEDED
    read_artifact(server.api, f"{job.name}/artifacts/w.safetensors")
    with pytest.raises(grpc.RpcError):
        get_job(server.api, "tenants/default/jobs/no-such-job")
    return server


def test_promtool_finds_nothing(worked: Server, promtool: Callable[..., object]) -> None:
    checked = promtool("check", "metrics", stdin=worked.metrics())
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")


def test_names_and_units(worked: Server) -> None:
    scrape = _scrape(worked)
    own = [name for name in scrape.types if name.startswith("quantd_")]
    assert len(own) >= 15
    for name in own:
        assert scrape.help.get(name), f"{name} has no help"
        kind = scrape.types[name]
        if kind == "counter":
            assert name.endswith("_total"), name
        if kind == "histogram":
            assert re.search(r"_(seconds|bytes)$", name), name


def test_every_metric_is_documented(worked: Server) -> None:
    documented = (REPOSITORY / "docs" / "metrics.md").read_text()
    for name in _scrape(worked).types:
        assert name in documented, f"{name} is not in docs/metrics.md"


def test_build_info(worked: Server) -> None:
    scrape = _scrape(worked)
    assert scrape.value("quantd_build_info") == 1
    (version,) = scrape.labels("quantd_build_info", "version")
    assert re.match(r"\d+\.\d+\.\d+", version)
    assert scrape.value("quantd_serving") == 1


def test_tokens_layers_and_bytes_move_with_work(server: Server) -> None:
    """Exactly by what was done."""
    before = _scrape(server)
    values = activations_like(100, COLS, 3)
    statistic = sealed_statistic(server.api, "moves", values, BF16).name
    recipe = recipe_pb2.Recipe(format=recipe_pb2.INT4)
    job = create_job(
        server.api, [layer(f"l{n}", 16, COLS, statistic=statistic) for n in range(3)], recipe
    )
    for described in job.layers:
        upload(server.api, described.name, gaussian(16, COLS, 1))
    wait_for_job(server.api, job.name)
    artifact = next(iter(list_artifacts(server.api, job.name).values()))
    read_artifact(server.api, artifact.name)
    _wait_for(server, "quantd_layers_total", before, 3, outcome="succeeded")
    _wait_for(server, "quantd_sent_bytes_total", before, artifact.size_bytes, kind="artifacts")
    _wait_for(server, "quantd_rpcs_total", before, 1, method="quantd.v1.Results/ReadArtifact")
    after = _scrape(server)

    def moved(name: str, **labels: str) -> float:
        return after.value(name, **labels) - before.value(name, **labels)

    assert moved("quantd_accumulated_tokens_total", tenant="default") == 100
    assert moved("quantd_received_bytes_total", kind="activations") == 100 * COLS * 2
    assert moved("quantd_received_bytes_total", kind="weights") == 3 * 16 * COLS * 4
    assert moved("quantd_sent_bytes_total", kind="artifacts") == artifact.size_bytes
    assert moved("quantd_layers_total", format="int4", outcome="succeeded") == 3
    assert moved("quantd_layer_duration_seconds_count", format="int4") == 3
    assert moved("quantd_device_seconds_total", tenant="default") > 0
    assert moved("quantd_queue_wait_seconds_count") == 3
    assert moved("quantd_stage_duration_seconds_count") >= 3
    assert moved("quantd_rpcs_total", method="quantd.v1.Jobs/CreateJob", code="OK") == 1
    assert moved("quantd_rpcs_total", method="quantd.v1.Weights/UploadWeights", code="OK") == 3
    assert moved("quantd_commit_duration_seconds_count", kind="weights") == 3
    assert moved("quantd_commit_duration_seconds_count", kind="activations") >= 1
    assert moved("quantd_chunk_durable_seconds_count") >= 1
    delete_job(server.api, job.name)


def test_failed_layers_are_counted(server: Server) -> None:
    before = _scrape(server)
    name = server.api.statistic_name("too-narrow")
    job = create_job(server.api, [layer("w", 16, COLS, statistic=name)])
    upload(server.api, job.layers[0].name, gaussian(16, COLS, 1))
    sealed_statistic(server.api, "too-narrow", activations_like(8, 32, 3))
    assert wait_for_job(server.api, job.name).state == jobs_pb2.FAILED
    _wait_for(server, "quantd_layers_total", before, 1, outcome="failed")
    delete_job(server.api, job.name)


def test_rejected_requests_are_counted_by_reason(server: Server) -> None:
    before = _scrape(server)
    for _ in range(3):
        stream = ActivationStream(
            server.api, activation_header(server.api.statistic_name("rejected"), COLS)
        )
        stream.send(activation_chunk(1, np.full((4, COLS), np.nan)))
        with pytest.raises(grpc.RpcError):
            stream.error()
    name = "quantd_rejected_requests_total"
    _wait_for(server, name, before, 3, reason="NON_FINITE")
    after = _scrape(server)
    assert after.value(name, reason="NON_FINITE") - before.value(name, reason="NON_FINITE") == 3


def test_traffic_and_refusals_are_told_apart_by_tenant(start_server: Callable[..., Server]) -> None:
    digests = {name: hashlib.sha256(f"{name}-token".encode()).hexdigest() for name in "ab"}
    config = [f'tenants {{ name: "{name}" token_sha256: "{digests[name]}" }}' for name in "ab"]
    server = start_server(config="\n".join(config))
    ours, other = (server.connect(name, f"{name}-token") for name in "ab")
    job = create_job(ours, [layer("w", 16, COLS)])
    upload(ours, job.layers[0].name, gaussian(16, COLS, 1))
    wait_for_job(ours, job.name)
    artifact = next(iter(list_artifacts(ours, job.name).values()))
    read_artifact(ours, artifact.name)
    for api in (other, server.connect("a", "no-such-token")):
        with pytest.raises(grpc.RpcError):
            get_job(api, other.job_name("nothing"))

    name = "quantd_rejected_requests_total"
    eventually(lambda: _scrape(server).value(name) == 2, "both refusals are counted")
    scrape = _scrape(server)
    assert scrape.value("quantd_received_bytes_total", tenant="a", kind="weights") == 16 * COLS * 4
    assert scrape.value("quantd_sent_bytes_total", tenant="a") == artifact.size_bytes
    assert scrape.value("quantd_received_bytes_total", tenant="b") == 0
    assert scrape.value("quantd_sent_bytes_total", tenant="b") == 0
    assert scrape.value(name, tenant="b", reason="NOT_FOUND") == 1
    assert scrape.value(name, tenant="a") == 0
    assert scrape.value(name, tenant="") == 1  # whoever that was


def test_open_streams_are_counted_and_given_back(server: Server) -> None:
    def open_now(kind: str) -> float:
        return _scrape(server).value("quantd_open_streams", kind=kind)

    eventually(lambda: open_now("activations") == 0, "no stream is open")
    streams = [
        ActivationStream(
            server.api,
            activation_header(server.api.statistic_name("open"), COLS, stream_id=f"s{n}"),
        )
        for n in range(3)
    ]
    eventually(lambda: open_now("activations") == 3, "three streams are open")
    streams[0].finish()
    streams[1].cancel()
    eventually(lambda: open_now("activations") == 1, "one stream is open")
    streams[2].cancel()
    eventually(lambda: open_now("activations") == 0, "no stream is open")

    job = create_job(server.api, [layer("w", 16, COLS)])
    watching = watch(server.api, job.name)
    next(iter(watching))
    eventually(lambda: open_now("watch") == 1, "somebody watches")
    watching.cancel()
    eventually(lambda: open_now("watch") == 0, "nobody watches")
    delete_job(server.api, job.name)


def test_stored_bytes(server: Server) -> None:
    """They rise with an upload and fall with the deletion."""

    def stored() -> float:
        return _scrape(server).value("quantd_stored_bytes", tenant="default")

    before = stored()
    weight = gaussian(256, COLS, 1)
    job = create_job(
        server.api,
        [layer("w", 256, COLS, statistic=server.api.statistic_name("never"))],
    )
    upload(server.api, job.layers[0].name, weight)
    size = len(encode(weight, BF16)) * 2
    eventually(lambda: stored() >= before + size, "the weights are counted")
    delete_job(server.api, job.name)
    eventually(lambda: stored() <= before, "the weights are no longer counted")


def test_devices(worked: Server) -> None:
    scrape = _scrape(worked)
    (device,) = scrape.labels("quantd_device_memory_bytes", "device")
    assert scrape.value("quantd_device_memory_bytes", device=device) > 1 << 28
    used = scrape.value("quantd_device_memory_used_bytes", device=device)
    assert 0 <= used <= scrape.value("quantd_device_memory_bytes", device=device)


def test_activity_is_that_of_gpus(worked: Server) -> None:
    """Nobody measures it for the CPU: no series, rather than one that says 0."""
    scrape = _scrape(worked)
    gpus = {d for d in scrape.labels("quantd_device_memory_bytes", "device") if d != "cpu"}
    for name in ("utilisation_ratio", "power_watts", "temperature_celsius"):
        assert scrape.labels(f"quantd_device_{name}", "device") <= gpus
    for device in gpus:
        assert 0 <= scrape.value("quantd_device_utilisation_ratio", device=device) <= 1
        assert 0 < scrape.value("quantd_device_power_watts", device=device) < 5000
        assert 0 < scrape.value("quantd_device_temperature_celsius", device=device) < 120


def test_histograms_are_consistent(worked: Server) -> None:
    scrape = _scrape(worked)
    for name, kind in scrape.types.items():
        if kind != "histogram":
            continue
        series: dict[tuple[tuple[str, str], ...], list[tuple[float, float]]] = {}
        for labels, value in scrape.samples.get(f"{name}_bucket", []):
            bound = float(labels["le"].replace("+Inf", "inf"))
            key = tuple(sorted((k, v) for k, v in labels.items() if k != "le"))
            series.setdefault(key, []).append((bound, value))
        for key, buckets in series.items():
            counts = [count for _, count in sorted(buckets)]
            assert counts == sorted(counts), (name, key)
            assert counts[-1] == scrape.value(f"{name}_count", **dict(key))


def test_names_that_callers_choose_make_no_series(server: Server) -> None:
    """Neither in labels nor anywhere else."""
    before = len(server.metrics().splitlines())
    for n in range(200):
        with pytest.raises(grpc.RpcError):
            get_job(server.api, f"tenants/default/jobs/random-{n}")
        with pytest.raises(grpc.RpcError):
            get_job(server.api, f"tenants/random-{n}/jobs/x")
    text = server.metrics()
    assert "random-" not in text
    assert len(text.splitlines()) < before + 100


def test_probes(server: Server) -> None:
    assert server.probe("/healthz") == (200, "alive\n")
    assert server.probe("/readyz") == (200, "ready\n")
    assert _scrape(server).value("quantd_ready") == 1


@pytest.mark.skipif(not failpoint_names(), reason="built without QUANTD_FAILPOINTS")
def test_a_store_that_cannot_sync(start_server: Callable[..., Server]) -> None:
    """The server is alive, but not ready, and counts why; what keeps nothing goes on."""
    server = start_server()
    server.terminate()
    assert server.wait() == 0
    server.environment["QUANTD_FAILPOINTS"] = "sqlite.wal.sync=eio"
    server.restart()
    assert server.probe("/readyz") == (200, "ready\n")

    with pytest.raises(grpc.RpcError):
        create_job(server.api, [layer("w", 16, COLS)])
    assert server.probe("/readyz") == (503, "not ready: the store fails\n")
    assert server.probe("/healthz") == (200, "alive\n")
    assert [server.api.health(f"quantd.v1.{name}") for name in ("Jobs", "Quantize")] == [
        "NOT_SERVING",
        "SERVING",
    ]
    scrape = _scrape(server)
    assert scrape.value("quantd_ready") == 0
    assert scrape.value("quantd_serving") == 1
    assert scrape.value("quantd_sync_failures_total") >= 1


@pytest.mark.skipif(not failpoint_names(), reason="built without QUANTD_FAILPOINTS")
def test_a_blob_that_cannot_be_synced(start_server: Callable[..., Server]) -> None:
    """The failure is that blob's alone, and counted."""
    server = start_server(environment={"QUANTD_FAILPOINTS": "blob.commit.fsync=eio@1"})
    job = create_job(server.api, [layer("w", 16, COLS)])
    with pytest.raises(grpc.RpcError):
        upload(server.api, job.layers[0].name, gaussian(16, COLS, 1))
    assert _scrape(server).value("quantd_sync_failures_total") == 1
    assert upload(server.api, job.layers[0].name, gaussian(16, COLS, 1)).complete
    assert _scrape(server).value("quantd_sync_failures_total") == 1


def test_the_disk_is_measured(server: Server) -> None:
    disk = os.statvfs(server.data_dir)
    scrape = _scrape(server)
    assert scrape.value("quantd_disk_bytes") == disk.f_blocks * disk.f_frsize
    free = scrape.value("quantd_disk_free_bytes")
    assert 0 < free <= disk.f_blocks * disk.f_frsize


def test_nothing_else_is_served(server: Server) -> None:
    for path in ("/", "/etc/passwd", "/metrics/../../etc/passwd", "/debug"):
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(f"http://{server.metrics_address}{path}", timeout=seconds(10))
        assert caught.value.code in (400, 404)


def test_garbage_on_the_metrics_port(server: Server) -> None:
    """Half requests, no HTTP at all, a very long header: the endpoint answers on."""
    host, port = server.metrics_address.rsplit(":", 1)
    for garbage in (b"\x00\xff" * 100, b"GET ", b"GET /metrics HTTP/1.1\r\nX: " + b"a" * 100_000):
        with socket.create_connection((host, int(port)), timeout=seconds(5)) as connection:
            connection.sendall(garbage)
    connection = http.client.HTTPConnection(host, int(port), timeout=seconds(10))
    connection.request("GET", "/metrics")
    answer = connection.getresponse()
    assert answer.status == 200
    assert answer.getheader("Content-Type", "").startswith("text/plain")
    connection.close()


@pytest.fixture
def scraping(worked: Server, prometheus: str, tmp_path: Path) -> Iterator[Prometheus]:
    """A real Prometheus that scrapes the server every 200 ms."""
    config = tmp_path / "prometheus.yml"
    config.write_text(
        json.dumps(  # JSON is YAML
            {
                "global": {"scrape_interval": "200ms", "scrape_timeout": "200ms"},
                "scrape_configs": [
                    {
                        "job_name": "quantd",
                        "static_configs": [{"targets": [worked.metrics_address]}],
                    }
                ],
            }
        )
    )
    with running_prometheus(prometheus, config, tmp_path) as scraping:
        yield scraping


def test_prometheus_scrapes(scraping: Prometheus, worked: Server) -> None:
    def query(expression: str) -> list[dict]:
        try:
            return scraping.ask(expression)
        except (urllib.error.URLError, ConnectionError):
            return []  # it is still starting

    (build_info,) = eventually(lambda: query("quantd_build_info"), "the scrape has arrived", 20)
    assert build_info["value"][1] == "1"
    assert build_info["metric"]["job"] == "quantd"
    assert "version" in build_info["metric"]
    (up,) = query("up")
    assert up["value"][1] == "1"
    tokens = query('sum(quantd_accumulated_tokens_total{tenant="default"})')
    assert float(tokens[0]["value"][1]) >= 64
    p99 = query("histogram_quantile(0.99, sum by (le) (quantd_rpc_duration_seconds_bucket))")
    assert 0 < float(p99[0]["value"][1]) < 1000
