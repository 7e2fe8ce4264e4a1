"""GetServerInfo, health and reflection."""

from __future__ import annotations

import re

import grpc
import pytest
from quantd.v1 import recipe_pb2, server_pb2

from .server_process import Server


@pytest.fixture(scope="module")
def info(server: Server) -> server_pb2.ServerInfo:
    return server.api.server.GetServerInfo(server_pb2.GetServerInfoRequest())


def test_version_and_tenant(info: server_pb2.ServerInfo) -> None:
    assert re.match(r"\d+\.\d+\.\d+", info.version)
    assert info.tenant == "default"


def test_devices(info: server_pb2.ServerInfo) -> None:
    assert info.devices
    assert info.devices[0].name == "cpu" or info.devices[0].name.startswith("cuda:")
    assert info.devices[0].description
    assert info.devices[0].memory_bytes > 1 << 28
    if info.devices[0].name == "cpu":
        assert not info.devices[0].uuid
        assert not info.devices[0].HasField("utilisation")
    else:
        assert re.fullmatch(r"GPU-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", info.devices[0].uuid)
        assert 0 <= info.devices[0].utilisation <= 1


def test_what_can_be_asked_for(info: server_pb2.ServerInfo) -> None:
    assert set(info.formats) == {
        recipe_pb2.MXFP4,
        recipe_pb2.NVFP4,
        recipe_pb2.INT2,
        recipe_pb2.INT3,
        recipe_pb2.INT4,
        recipe_pb2.INT8,
        recipe_pb2.FP8,
        recipe_pb2.ENTROPY_CODED,
        recipe_pb2.GAUSSIAN_GRID,
    }
    assert set(info.transforms) == {
        recipe_pb2.IDENTITY,
        recipe_pb2.HADAMARD,
        recipe_pb2.RANDOM,
        recipe_pb2.WUS,
        recipe_pb2.WUSH,
    }
    assert set(info.methods) == {
        recipe_pb2.RTN,
        recipe_pb2.GPTQ,
        recipe_pb2.WATERSIC,
        recipe_pb2.HIGGS,
    }


def test_limits(info: server_pb2.ServerInfo) -> None:
    limits = info.limits
    assert limits.max_message_bytes == 4 << 20
    assert 1 << 20 <= limits.max_chunk_bytes < limits.max_message_bytes
    assert limits.max_dimension == 1 << 20
    assert limits.max_layers_per_job == 4096
    assert limits.max_jobs_per_tenant == 1000
    assert limits.max_streams_per_tenant == 64
    assert limits.stream_credit_bytes == 16 << 20
    assert limits.max_inline_bytes == 1 << 20


SERVICES = ("Jobs", "Weights", "Calibration", "Results", "Quantize", "Server")


def test_health(server: Server) -> None:
    """Of the server as a whole and of each service by its name."""
    assert server.api.health() == "SERVING"
    for service in SERVICES:
        assert server.api.health(f"quantd.v1.{service}") == "SERVING", service


def test_health_of_a_service_that_is_not_there(server: Server) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        server.api.health("no.such.Service")
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


def test_listening_line_names_both_addresses(server: Server) -> None:
    (line,) = [entry for entry in server.log if entry.get("event") == "listening"]
    assert line["address"] == server.address
    assert line["metrics_address"] == server.metrics_address
    assert server.address != server.metrics_address


def test_log_is_json_lines(server: Server) -> None:
    assert len(server.log) == len(server.stderr), [
        line for line in server.stderr if not line.startswith("{")
    ]
