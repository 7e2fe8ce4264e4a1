"""Every limit of the configuration: reached, said, and given back."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
from quantd.v1 import calibration_pb2, jobs_pb2, quantize_pb2, recipe_pb2

from .refusal import refused, take_apart, unharmed
from .server_process import Server, eventually
from .wire import (
    F32,
    ActivationStream,
    OpenUpload,
    activation_chunk,
    activation_header,
    activations_like,
    create_job,
    delete_job,
    delete_statistic,
    get_statistic,
    inline,
    layer,
    limits,
    sealed_statistic,
    stream_activations,
    upload_header,
    works,
)

CONFIG = """
limits {
  max_dimension: 512
  max_weight_bytes: 262144
  max_layers_per_job: 3
  max_jobs_per_tenant: 4
  max_streams_per_tenant: 2
  stream_credit_bytes: 4194304
  max_inline_bytes: 4096
  max_statistics_per_tenant: 3
}
"""
COLS = 64


@pytest.fixture(autouse=True)
def nothing_left(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "server" not in request.fixturenames:
        return
    api = request.getfixturevalue("server").api
    for job in api.jobs.ListJobs(jobs_pb2.ListJobsRequest(parent=api.parent)).jobs:
        delete_job(api, job.name)
    for statistic in api.calibration.ListStatistics(
        calibration_pb2.ListStatisticsRequest(parent=api.parent)
    ).statistics:
        delete_statistic(api, statistic.name)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    started = Server(tmp_path_factory.mktemp("limits") / "data", config=CONFIG).start()
    yield started
    started.stop()


def test_limits_are_told(server: Server) -> None:
    told = limits(server.api)
    assert (told.max_dimension, told.max_layers_per_job) == (512, 3)
    assert (told.max_jobs_per_tenant, told.max_streams_per_tenant) == (4, 2)
    assert (told.stream_credit_bytes, told.max_inline_bytes) == (4 << 20, 4096)


@pytest.mark.parametrize(("rows", "cols", "field"), [(513, 32, "rows"), (1, 544, "cols")])
def test_dimension(server: Server, rows: int, cols: int, field: str) -> None:
    says = [512, max(rows, cols)]
    with unharmed(server), refused("INVALID_ARGUMENT", field=field, says=says):
        create_job(server.api, [layer("w", rows, cols)])


def test_dimension_of_a_statistic(server: Server) -> None:
    header = activation_header(
        server.api.statistic_name("wide"), 544, layout=calibration_pb2.BLOCK_DIAGONAL, block_size=32
    )
    with unharmed(server), refused("INVALID_ARGUMENT", field="cols", says=[512, 544]):
        ActivationStream(server.api, header)


def test_weight_bytes(server: Server) -> None:
    with unharmed(server), refused("INVALID_ARGUMENT", says=[262144, 512 * 256 * 4]):
        create_job(server.api, [layer("w", 512, 256)])


def test_layers(server: Server) -> None:
    layers = [layer(f"l{n}", 4, 32) for n in range(4)]
    with unharmed(server), refused("INVALID_ARGUMENT", field="layers", says=[3, 4]):
        create_job(server.api, layers)


def test_jobs(server: Server) -> None:
    jobs = [create_job(server.api, [layer("w", 4, 32)]) for _ in range(4)]
    with unharmed(server), refused("RESOURCE_EXHAUSTED", says=["4"]) as refusal:
        create_job(server.api, [layer("w", 4, 32)])
    assert any("tenants/default" in quota for quota in refusal.quota), refusal
    assert refusal.retry_seconds is not None and refusal.retry_seconds > 0
    # Checking costs nothing, so it is allowed.
    server.api.jobs.CreateJob(
        jobs_pb2.CreateJobRequest(
            parent="tenants/default",
            validate_only=True,
            job=jobs_pb2.Job(
                recipe=recipe_pb2.Recipe(format=recipe_pb2.MXFP4), layers=[layer("w", 4, 32)]
            ),
        )
    )
    delete_job(server.api, jobs[0].name)
    jobs[0] = create_job(server.api, [layer("w", 4, 32)])
    for job in jobs:
        delete_job(server.api, job.name)


def test_activation_streams(server: Server) -> None:
    name = server.api.statistic_name("streams")
    streams = [
        ActivationStream(server.api, activation_header(name, COLS, stream_id=f"s{n}"))
        for n in range(2)
    ]
    with refused("RESOURCE_EXHAUSTED", "TOO_MANY_STREAMS", says=[2]) as refusal:
        ActivationStream(server.api, activation_header(name, COLS, stream_id="s2"))
    assert any("tenants/default" in quota for quota in refusal.quota), refusal
    assert refusal.retry_seconds is not None and refusal.retry_seconds > 0
    streams[0].send(activation_chunk(1, np.ones((4, COLS))))  # the others go on
    assert streams[0].finish().durable_seq == 1

    def opens() -> bool:
        stream = ActivationStream(server.api, activation_header(name, COLS, stream_id="s2"))
        stream.finish()
        return True

    assert opens()
    streams[1].finish()
    works(server.api)


def test_upload_streams_count_too(server: Server) -> None:
    job = create_job(server.api, [layer(f"l{n}", 4, COLS) for n in range(3)])
    uploads = [OpenUpload(server.api, described.name, 4, COLS) for described in job.layers[:2]]
    third = job.layers[2].name

    def third_is_refused() -> bool:
        # An attempt that came first took a place: its loser tries again.
        for n, upload in enumerate(uploads):
            if upload.ended():
                uploads[n] = OpenUpload(server.api, job.layers[n].name, 4, COLS)
        return _upload_is_refused(server, third)

    eventually(third_is_refused, "the third upload is refused")
    for upload in uploads:
        upload.cancel()
    eventually(lambda: not _upload_is_refused(server, third), "the streams are given back")
    delete_job(server.api, job.name)


def _upload_is_refused(server: Server, name: str) -> bool:
    try:
        server.api.weights.UploadWeights(iter([upload_header(name, 4, COLS, F32)]))
    except grpc.RpcError as error:
        if error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED:
            refusal = take_apart(error)
            assert refusal.reason == "TOO_MANY_STREAMS"
            assert refusal.retry_seconds is not None
            return True
        raise
    return False


def test_statistics(server: Server) -> None:
    values = activations_like(8, COLS, 1)
    stream_activations(server.api, server.api.statistic_name("open"), values)
    for n in range(2):
        sealed_statistic(server.api, f"many-{n}", values)
    with unharmed(server), refused("RESOURCE_EXHAUSTED", says=["3"]) as refusal:
        ActivationStream(
            server.api, activation_header(server.api.statistic_name("one-too-many"), COLS)
        )
    assert refusal.retry_seconds is not None
    # Streams into what exists are no new statistics.
    stream_activations(server.api, server.api.statistic_name("open"), values, stream_id="z")
    assert get_statistic(server.api, server.api.statistic_name("open")).tokens == 16


def test_inline_bytes(server: Server) -> None:
    values = np.ones((33, 32), np.float32)
    with unharmed(server), refused("RESOURCE_EXHAUSTED", says=[4096]):
        server.api.quantize.QuantizeTensor(
            quantize_pb2.QuantizeTensorRequest(
                recipe=recipe_pb2.Recipe(format=recipe_pb2.MXFP4), weight=inline(values)
            )
        )


def test_credit_is_told_and_enough(server: Server) -> None:
    """A client that keeps to its credit gets everything through, however small it is."""
    values = np.ones((4096, COLS), np.float32)  # 1 MiB
    name = server.api.statistic_name("streams")
    stream = ActivationStream(server.api, activation_header(name, COLS, stream_id="polite"))
    credit = stream.opened.credit_bytes
    assert credit == 4 << 20
    chunk_bytes = values.nbytes
    for seq in range(1, 13):
        while (seq - stream.last.received_seq) * chunk_bytes > credit:
            stream.read()
        stream.send(activation_chunk(seq, values))
    assert stream.finish().durable_seq == 12


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ("no_such_field: 1", "no_such_field"),
        ("limits { max_dimension: -1 }", "max_dimension"),
        ("limits { max_dimension: 1048577 }", "max_dimension"),
        ('tenants { name: "UPPER" token_sha256: "00" }', "tenants"),
        ('tenants { name: "a" token_sha256: "zz" }', "token_sha256"),
        ('tls_certificate_file: "only.pem"', "tls_private_key_file"),
        ("drain_seconds: -5", "drain_seconds"),
        ('log_level: "loud"', "log_level"),
        ("{{{{", ".textproto:1:1"),
    ],
)
def test_malformed_configuration(tmp_path: Path, config: str, says: str) -> None:
    """The server does not start, and says which field is wrong."""
    server = Server(tmp_path / "data", config=config)
    with pytest.raises(AssertionError, match="before it listened"):
        server.start()
    assert server.process is not None and server.process.returncode > 0
    assert says in "".join(server.stderr)


@pytest.mark.parametrize(
    ("flag", "says"),
    [
        ("--listen=nonsense", "nonsense"),
        ("--listen=127.0.0.1:70000", "70000"),
        ("--listen=0.0.0.0:0", "allow_insecure_listen"),
        ("--no-such-flag", "no-such-flag"),
        ("--config=/no/such/file", "/no/such/file"),
    ],
)
def test_malformed_flags(tmp_path: Path, flag: str, says: str) -> None:
    server = Server(tmp_path / "data", flags=[flag])
    with pytest.raises(AssertionError, match="before it listened"):
        server.start()
    assert server.process is not None and server.process.returncode > 0
    assert says in "".join(server.stderr)
