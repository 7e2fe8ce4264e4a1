"""Names in requests: unknown, of another tenant, or no names at all."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest
from quantd.v1 import (
    calibration_pb2,
    jobs_pb2,
    recipe_pb2,
    results_pb2,
    weights_pb2,
)

from .refusal import refused, unharmed
from .server_process import Api, Server
from .wire import F32, create_job, delete_job, layer, works


def _first(stream: Iterator[Any]) -> Any:
    return next(iter(stream))


def _upload(api: Api, name: str) -> Any:
    header = weights_pb2.UploadHeader(layer=name, rows=1, cols=32, dtype=F32)
    return api.weights.UploadWeights(iter([weights_pb2.UploadWeightsRequest(header=header)]))


def _stream(api: Api, name: str) -> Any:
    header = calibration_pb2.ActivationHeader(statistic=name, stream_id="a", dtype=F32, cols=32)
    request = calibration_pb2.StreamActivationsRequest(header=header)
    return list(api.calibration.StreamActivations(iter([request])))


def _import(api: Api, name: str) -> Any:
    header = calibration_pb2.StatisticHeader(statistic=name, cols=32, dtype=F32, tokens=1)
    request = calibration_pb2.ImportStatisticRequest(header=header)
    return api.calibration.ImportStatistic(iter([request]))


def _job_with_statistic(api: Api, name: str) -> Any:
    return create_job(api, [layer("l", 4, 32, statistic=name)])


Call = Callable[[Api, str], Any]
JOB_CALLS: dict[str, Call] = {
    "GetJob": lambda api, n: api.jobs.GetJob(jobs_pb2.GetJobRequest(name=n)),
    "CancelJob": lambda api, n: api.jobs.CancelJob(jobs_pb2.CancelJobRequest(name=n)),
    "DeleteJob": lambda api, n: api.jobs.DeleteJob(jobs_pb2.DeleteJobRequest(name=n)),
    "PlanJob": lambda api, n: api.jobs.PlanJob(jobs_pb2.PlanJobRequest(name=n, bits_per_weight=4)),
    "WatchJob": lambda api, n: _first(api.jobs.WatchJob(jobs_pb2.WatchJobRequest(name=n))),
    "ListArtifacts": lambda api, n: api.results.ListArtifacts(
        results_pb2.ListArtifactsRequest(parent=n)
    ),
}
LAYER_CALLS: dict[str, Call] = {
    "GetUploadStatus": lambda api, n: api.weights.GetUploadStatus(
        weights_pb2.GetUploadStatusRequest(layer=n)
    ),
    "UploadWeights": _upload,
    "GetErrorReport": lambda api, n: api.results.GetErrorReport(
        results_pb2.GetErrorReportRequest(layer=n)
    ),
}
ARTIFACT_CALLS: dict[str, Call] = {
    "ReadArtifact": lambda api, n: _first(
        api.results.ReadArtifact(results_pb2.ReadArtifactRequest(name=n))
    ),
}
STATISTIC_CALLS: dict[str, Call] = {
    "GetStatistic": lambda api, n: api.calibration.GetStatistic(
        calibration_pb2.GetStatisticRequest(name=n)
    ),
    "SealStatistic": lambda api, n: api.calibration.SealStatistic(
        calibration_pb2.SealStatisticRequest(name=n)
    ),
    "DeleteStatistic": lambda api, n: api.calibration.DeleteStatistic(
        calibration_pb2.DeleteStatisticRequest(name=n)
    ),
    "ExportStatistic": lambda api, n: _first(
        api.calibration.ExportStatistic(calibration_pb2.ExportStatisticRequest(name=n))
    ),
    "MergeStatistics": lambda api, n: api.calibration.MergeStatistics(
        calibration_pb2.MergeStatisticsRequest(
            parent=api.parent, statistic_id="merged", sources=[n]
        )
    ),
}
# Calls that create what they name, where an unknown name is fine.
CREATING_CALLS: dict[str, Call] = {
    "StreamActivations": _stream,
    "ImportStatistic": _import,
    "CreateJob": _job_with_statistic,
}
PARENT_CALLS: dict[str, Call] = {
    "ListJobs": lambda api, n: api.jobs.ListJobs(jobs_pb2.ListJobsRequest(parent=n)),
    "ListStatistics": lambda api, n: api.calibration.ListStatistics(
        calibration_pb2.ListStatisticsRequest(parent=n)
    ),
    "CreateJob": lambda api, n: api.jobs.CreateJob(
        jobs_pb2.CreateJobRequest(
            parent=n,
            job=jobs_pb2.Job(
                recipe=recipe_pb2.Recipe(format=recipe_pb2.MXFP4), layers=[layer("l", 4, 32)]
            ),
        )
    ),
}

PREFIXES = {
    "job": "tenants/{tenant}/jobs/",
    "layer": "tenants/{tenant}/jobs/some-job/layers/",
    "artifact": "tenants/{tenant}/jobs/some-job/artifacts/",
    "statistic": "tenants/{tenant}/statistics/",
}
CALLS: list[tuple[str, str, Call]] = [
    (kind, name, call)
    for kind, calls in (
        ("job", JOB_CALLS),
        ("layer", LAYER_CALLS),
        ("artifact", ARTIFACT_CALLS),
        ("statistic", STATISTIC_CALLS),
    )
    for name, call in calls.items()
]
EVERY_NAMED_CALL = [*CALLS, *(("statistic", name, call) for name, call in CREATING_CALLS.items())]

# What no name may look like; {0} is the name's own last segment.
MALFORMED = {
    "empty": "",
    "no_id": "{prefix}",
    "traversal": "{prefix}../../../../etc/passwd",
    "dots": "{prefix}..",
    "absolute": "/etc/passwd",
    "leading_slash": "/{prefix}some-id",
    "trailing_slash": "{prefix}some-id/",
    "doubled_slash": "tenants/{tenant}//jobs/some-id",
    "more_segments": "{prefix}some-id/layers/x/y",
    "another_collection": "tenants/{tenant}/planets/some-id",
    "percent": "{prefix}some%2Fid",
    "backslash": "{prefix}..\\..\\x",
    "newline": "{prefix}some\nid",
    "nul": "{prefix}some\0id",
    "escape": "{prefix}\x1b[31mred",
    "space": "{prefix}some id",
    "not_ascii": "{prefix}schöner-name",
    "right_to_left": "{prefix}abc\u202egpj",
    "too_long": "{prefix}" + "a" * 300,
    "very_long": "{prefix}" + "a" * 100_000,
    "shell": "{prefix}$(reboot)",
    "sql": "{prefix}x'; DROP TABLE jobs; --",
}


# What gRPC answers by itself where bytes do not parse; it depends on the version.
NOT_PARSED = (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNIMPLEMENTED)


def _ids(calls: list[tuple[str, str, Call]]) -> list[str]:
    return [name for _, name, _ in calls]


@pytest.mark.parametrize(("kind", "name", "call"), CALLS, ids=_ids(CALLS))
def test_unknown(server: Server, kind: str, name: str, call: Call) -> None:
    unknown = PREFIXES[kind].format(tenant="default") + "no-such-thing"
    with unharmed(server), refused("NOT_FOUND", says=["tenants/default/"]):
        call(server.api, unknown)


@pytest.mark.parametrize(("kind", "name", "call"), EVERY_NAMED_CALL, ids=_ids(EVERY_NAMED_CALL))
def test_of_another_tenant(server: Server, kind: str, name: str, call: Call) -> None:
    foreign = PREFIXES[kind].format(tenant="somebody-else") + "some-id"
    with unharmed(server), refused("PERMISSION_DENIED"):
        call(server.api, foreign)


@pytest.mark.parametrize("call", PARENT_CALLS.values(), ids=PARENT_CALLS)
def test_parent_of_another_tenant(server: Server, call: Call) -> None:
    with unharmed(server), refused("PERMISSION_DENIED"):
        call(server.api, "tenants/somebody-else")


@pytest.mark.parametrize(("kind", "name", "call"), EVERY_NAMED_CALL, ids=_ids(EVERY_NAMED_CALL))
def test_malformed(server: Server, kind: str, name: str, call: Call) -> None:
    with unharmed(server):
        for what, pattern in MALFORMED.items():
            if name == "CreateJob" and what == "empty":
                continue  # a layer without a statistic
            prefix = PREFIXES[kind].format(tenant="default")
            bad = pattern.format(prefix=prefix, tenant="default")
            with refused("INVALID_ARGUMENT") as refusal:
                call(server.api, bad)
            assert refusal.fields, (what, refusal)
            # The message is for a person: short, and with nothing that moves a terminal's cursor.
            assert len(refusal.message) < 1000, what
            assert refusal.message.isprintable(), (what, refusal.message)


@pytest.mark.parametrize("call", PARENT_CALLS.values(), ids=PARENT_CALLS)
@pytest.mark.parametrize(
    "parent", ["", "tenants", "tenants/", "tenants/default/", "default", "tenants/a/../default"]
)
def test_malformed_parent(server: Server, call: Call, parent: str) -> None:
    with unharmed(server), refused("INVALID_ARGUMENT", field="parent"):
        call(server.api, parent)


@pytest.mark.parametrize(
    "job_id", ["Upper", "under_score", "a" * 64, "dot.dot", "..", "a/b", "ü", " ", "a\nb"]
)
def test_malformed_job_id(server: Server, job_id: str) -> None:
    with unharmed(server), refused("INVALID_ARGUMENT", field="job_id"):
        create_job(server.api, [layer("l", 4, 32)], job_id=job_id)


@pytest.mark.parametrize(
    "layer_id", ["", "a/b", "..", ".", "a b", "ö", "a\0b", "x" * 257, "model\\layer"]
)
def test_malformed_layer_id(server: Server, layer_id: str) -> None:
    with unharmed(server), refused("INVALID_ARGUMENT", field="layer_id"):
        create_job(server.api, [layer("good", 4, 32), layer(layer_id, 4, 32)])


@pytest.mark.parametrize("statistic_id", ["", "a/b", "..", "a b", "ö", "x" * 257])
def test_malformed_merged_statistic_id(server: Server, statistic_id: str) -> None:
    with unharmed(server), refused("INVALID_ARGUMENT", field="statistic_id"):
        server.api.calibration.MergeStatistics(
            calibration_pb2.MergeStatisticsRequest(
                parent="tenants/default",
                statistic_id=statistic_id,
                sources=["tenants/default/statistics/x"],
            )
        )


@pytest.mark.parametrize("stream_id", ["", "a/b", "x" * 65, "ä", "a b", "a\0b"])
def test_malformed_stream_id(server: Server, stream_id: str) -> None:
    header = calibration_pb2.ActivationHeader(
        statistic="tenants/default/statistics/s", stream_id=stream_id, dtype=F32, cols=32
    )
    with unharmed(server), refused("INVALID_ARGUMENT", field="stream_id"):
        list(
            server.api.calibration.StreamActivations(
                iter([calibration_pb2.StreamActivationsRequest(header=header)])
            )
        )


def test_longest_names_work(server: Server) -> None:
    longest = "x" * 252 + "_.-9"
    job = create_job(server.api, [layer(longest, 4, 32)], job_id="j" * 63)
    assert job.name == "tenants/default/jobs/" + "j" * 63
    assert job.layers[0].name.endswith(f"/layers/{longest}")
    delete_job(server.api, job.name)


def test_names_that_are_not_utf8(server: Server) -> None:
    """A Python message cannot hold it, so the bytes are written by hand. Refused by gRPC itself."""
    get_job = server.api.channel.unary_unary("/quantd.v1.Jobs/GetJob")
    with unharmed(server):
        with pytest.raises(grpc.RpcError) as caught:
            get_job(b"\x0a\x18tenants/default/jobs/\xff\xfe\x80")
        assert caught.value.code() in NOT_PARSED


@pytest.mark.parametrize(
    "path",
    [
        "/quantd.v1.Jobs/GetJob",
        "/quantd.v1.Jobs/CreateJob",
        "/quantd.v1.Calibration/MergeStatistics",
        "/quantd.v1.Quantize/QuantizeTensor",
        "/quantd.v1.Results/GetErrorReport",
    ],
)
def test_bytes_that_are_no_message(server: Server, path: str) -> None:
    call = server.api.channel.unary_unary(path)
    with unharmed(server):
        for garbage in (b"\xff" * 64, b"\x0a\xff\xff\xff\xff\x0f", b"\x08"):
            with pytest.raises(grpc.RpcError) as caught:
                call(garbage)
            assert caught.value.code() in NOT_PARSED


def test_method_that_does_not_exist(server: Server) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        server.api.channel.unary_unary("/quantd.v1.Jobs/NoSuchMethod")(b"")
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    works(server.api)
