"""grpcurl, a client that knows nothing of us: everything by reflection."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable

import pytest

from .server_process import Server
from .wire import get_job, works

Tool = Callable[..., subprocess.CompletedProcess[str]]
SERVICES = ("Calibration", "Jobs", "Quantize", "Results", "Server", "Weights")


def test_lists_the_services(server: Server, grpcurl: Tool) -> None:
    listed = grpcurl(server.address, "list", check=True).stdout.split()
    assert {f"quantd.v1.{name}" for name in SERVICES} <= set(listed)
    assert "grpc.health.v1.Health" in listed
    assert "grpc.reflection.v1alpha.ServerReflection" in listed


@pytest.mark.parametrize(
    ("service", "methods"),
    [
        (
            "Jobs",
            ["CancelJob", "CreateJob", "DeleteJob", "GetJob", "ListJobs", "PlanJob", "WatchJob"],
        ),
        ("Weights", ["GetUploadStatus", "UploadWeights"]),
        (
            "Calibration",
            [
                "DeleteStatistic",
                "ExportStatistic",
                "GetStatistic",
                "ImportStatistic",
                "ListStatistics",
                "MergeStatistics",
                "SealStatistic",
                "StreamActivations",
            ],
        ),
        ("Results", ["GetErrorReport", "ListArtifacts", "ReadArtifact"]),
        ("Quantize", ["QuantizeTensor"]),
        ("Server", ["GetServerInfo", "ListTenants"]),
    ],
)
def test_lists_the_methods(server: Server, grpcurl: Tool, service: str, methods: list[str]) -> None:
    listed = grpcurl(server.address, "list", f"quantd.v1.{service}", check=True).stdout.split()
    assert sorted(listed) == [f"quantd.v1.{service}.{method}" for method in methods]


@pytest.mark.parametrize("service", SERVICES)
def test_describes(server: Server, grpcurl: Tool, service: str) -> None:
    described = grpcurl(server.address, "describe", f"quantd.v1.{service}", check=True).stdout
    assert f"service {service} {{" in described


def test_describes_a_message(server: Server, grpcurl: Tool) -> None:
    described = grpcurl(server.address, "describe", "quantd.v1.Recipe", check=True).stdout
    assert "quantd.v1.Format format = 1;" in described
    assert "double damping" in described


def test_server_info(server: Server, grpcurl: Tool) -> None:
    info = json.loads(grpcurl(server.address, "quantd.v1.Server/GetServerInfo", check=True).stdout)
    assert "MXFP4" in info["formats"]
    assert "WUSH" in info["transforms"]
    assert "RTN" in info["methods"]
    assert int(info["limits"]["max_message_bytes"]) == 4 << 20


def test_health(server: Server, grpcurl: Tool) -> None:
    answer = grpcurl(server.address, "grpc.health.v1.Health/Check", check=True).stdout
    assert json.loads(answer) == {"status": "SERVING"}


def test_quantizes_a_hand_written_tensor(server: Server, grpcurl: Tool) -> None:
    """A row of MXFP4's own values comes back as it was."""
    row = [0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.5, -1, -1.5, -2, -3, -4, -6, 0] * 2
    request = {
        "recipe": {"format": "MXFP4", "scale_rule": "OCP"},
        "weight": {"shape": [1, 32], "values": row},
        "return_dequantized": True,
    }
    answer = json.loads(
        grpcurl(
            "-d",
            json.dumps(request),
            server.address,
            "quantd.v1.Quantize/QuantizeTensor",
            check=True,
        ).stdout
    )
    assert {tensor["name"] for tensor in answer["tensors"]} >= {"weight_packed", "weight_scale"}
    assert answer["report"]["bits_per_weight"] >= 4.25
    assert answer["dequantized"]["shape"] == ["1", "32"]


def test_creates_reads_and_deletes_a_job(server: Server, grpcurl: Tool) -> None:
    request = {
        "parent": "tenants/default",
        "job_id": "by-grpcurl",
        "job": {
            "recipe": {"format": "NVFP4", "transform": "HADAMARD"},
            "layers": [{"layer_id": "q", "rows": 64, "cols": 64, "dtype": "BF16"}],
        },
    }
    created = json.loads(
        grpcurl(
            "-d", json.dumps(request), server.address, "quantd.v1.Jobs/CreateJob", check=True
        ).stdout
    )
    name = created["job"]["name"]
    assert name == "tenants/default/jobs/by-grpcurl"
    assert created["job"]["state"] == "ACCEPTING"
    assert created["job"]["recipe"]["group_size"] == 16
    assert int(created["estimate"]["output_bytes"]) > 64 * 64 / 2
    assert get_job(server.api, name).layers[0].layer_id == "q"
    listed = json.loads(
        grpcurl(
            "-d",
            '{"parent": "tenants/default"}',
            server.address,
            "quantd.v1.Jobs/ListJobs",
            check=True,
        ).stdout
    )
    assert [job["name"] for job in listed["jobs"]] == [name]
    grpcurl(
        "-d", json.dumps({"name": name}), server.address, "quantd.v1.Jobs/DeleteJob", check=True
    )
    works(server.api)


def test_error_shows_its_details(server: Server, grpcurl: Tool) -> None:
    """What a person at a shell sees of a refused request: reason, field, expected and came."""
    request = {
        "parent": "tenants/default",
        "job": {
            "recipe": {"format": "MXFP4"},
            "layers": [{"layer_id": "q", "rows": 64, "cols": 48, "dtype": "BF16"}],
        },
    }
    failed = grpcurl("-d", json.dumps(request), server.address, "quantd.v1.Jobs/CreateJob")
    assert failed.returncode != 0
    shown = failed.stderr
    assert "InvalidArgument" in shown
    assert "google.rpc.ErrorInfo" in shown
    assert "google.rpc.BadRequest" in shown
    assert "quantd.dev" in shown
    assert "layers[0]" in shown
    assert "32" in shown and "48" in shown


def test_not_found_shows_its_details(server: Server, grpcurl: Tool) -> None:
    failed = grpcurl(
        "-d",
        '{"name": "tenants/default/jobs/no-such-job"}',
        server.address,
        "quantd.v1.Jobs/GetJob",
    )
    assert failed.returncode != 0
    assert "NotFound" in failed.stderr
    assert "tenants/default/jobs/no-such-job" in failed.stderr
    assert "google.rpc.ErrorInfo" in failed.stderr


def test_streams_activations(server: Server, grpcurl: Tool) -> None:
    """A bidirectional stream typed by hand: data is base64, the CRC a number."""
    import base64

    import numpy as np

    from .wire import crc32c, encode, get_statistic

    data = encode(np.ones((2, 32)), 2)
    messages = [
        {
            "header": {
                "statistic": "tenants/default/statistics/by-grpcurl",
                "stream_id": "shell",
                "dtype": "F32",
                "cols": 32,
            }
        },
        {
            "chunk": {
                "seq": 1,
                "rows": 2,
                "data": base64.b64encode(data).decode(),
                "crc32c": crc32c(data),
            }
        },
    ]
    answers = grpcurl(
        "-d",
        "@",
        server.address,
        "quantd.v1.Calibration/StreamActivations",
        stdin="\n".join(map(json.dumps, messages)),
        check=True,
    ).stdout
    assert '"durable_seq": "1"' in answers
    assert get_statistic(server.api, "tenants/default/statistics/by-grpcurl").tokens == 2
