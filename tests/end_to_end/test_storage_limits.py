"""What a tenant may store, and what the server deletes by itself."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import grpc
import numpy as np
import pytest
from quantd.v1 import calibration_pb2, jobs_pb2

from .prometheus_text import parse
from .refusal import refused
from .server_process import Server, eventually
from .wire import (
    F32,
    ActivationStream,
    activation_chunk,
    activation_header,
    activations_like,
    create_job,
    delete_job,
    export_statistic,
    gaussian,
    get_job,
    get_statistic,
    import_requests,
    layer,
    sealed_statistic,
    upload,
    upload_chunk,
    upload_header,
    upload_status,
    wait_for_job,
    works,
)

LIMIT = 200_000


@pytest.fixture
def limited(start_server: Callable[..., Server]) -> Server:
    return start_server(config=f"limits {{ max_stored_bytes: {LIMIT} }}")


def _stored(server: Server) -> float:
    return parse(server.metrics()).value("quantd_stored_bytes")


def test_an_upload_that_does_not_fit_stores_nothing(limited: Server) -> None:
    job = create_job(limited.api, [layer("big", 256, 256), layer("small", 64, 64)])
    before = limited.blob_files()
    with refused("RESOURCE_EXHAUSTED", "STORAGE_QUOTA", says=[LIMIT, 256 * 256 * 4]):
        upload(limited.api, job.layers[0].name, gaussian(256, 256, 1))
    assert limited.blob_files() == before
    assert upload_status(limited.api, job.layers[0].name).committed_size == 0
    works(limited.api)
    assert upload(limited.api, job.layers[1].name, gaussian(64, 64, 1)).complete
    limited.api.jobs.CancelJob(jobs_pb2.CancelJobRequest(name=job.name))


def test_uploads_together_do_not_pass_the_limit(limited: Server) -> None:
    """Each fits by itself; the second finds out when it opens, and goes on when there is room."""
    job = create_job(limited.api, [layer("a", 128, 256), layer("b", 128, 256)])
    weight = gaussian(128, 256, 1)  # 131072 bytes
    assert upload(limited.api, job.layers[0].name, weight).complete
    with refused("RESOURCE_EXHAUSTED", "STORAGE_QUOTA"):
        upload(limited.api, job.layers[1].name, weight)
    assert _stored(limited) <= LIMIT
    delete_job(limited.api, job.name)
    eventually(lambda: _stored(limited) == 0, "what a running layer had written goes, too")
    again = create_job(limited.api, [layer("b", 128, 256)])
    assert upload(limited.api, again.layers[0].name, weight).complete
    delete_job(limited.api, again.name)


def test_a_tenants_limit_is_read_again(start_server: Callable[..., Server]) -> None:
    """What is refused at the old limit fits the new one, and what fitted is refused below it."""

    def tenant(limit: int) -> str:
        token = hashlib.sha256(b"acme-token").hexdigest()
        own = f"max_stored_bytes: {limit}" if limit else ""
        return (
            f'tenants {{ name: "acme" token_sha256: "{token}" {own} }}\n'
            f"limits {{ max_stored_bytes: {2 * LIMIT} }}"
        )

    server = start_server(config=tenant(10_000))
    api = server.connect("acme", "acme-token")
    job = create_job(api, [layer("a", 128, 256), layer("b", 128, 256)])
    weight = gaussian(128, 256, 1)  # 131072 bytes
    with refused("RESOURCE_EXHAUSTED", "STORAGE_QUOTA", says=[10_000]):
        upload(api, job.layers[0].name, weight)
    assert server.reload(tenant(LIMIT))["restart_needed"] is False
    assert upload(api, job.layers[0].name, weight).complete
    with refused("RESOURCE_EXHAUSTED", "STORAGE_QUOTA", says=[LIMIT]):
        upload(api, job.layers[1].name, weight)
    assert server.reload(tenant(0))["restart_needed"] is False  # limits.max_stored_bytes holds
    assert upload(api, job.layers[1].name, weight).complete


def test_streams_and_imports_that_do_not_fit(limited: Server) -> None:
    name = limited.api.statistic_name("wide")
    with refused("RESOURCE_EXHAUSTED", "STORAGE_QUOTA"):
        ActivationStream(limited.api, activation_header(name, 256))
    with refused("NOT_FOUND"):
        get_statistic(limited.api, name)
    sealed = sealed_statistic(limited.api, "narrow", activations_like(64, 96, 1), sample_rows=8)
    exported = export_statistic(limited.api, sealed.name)
    stored = 0
    with refused("RESOURCE_EXHAUSTED", "STORAGE_QUOTA"):
        while stored < 10:
            exported.header.statistic = limited.api.statistic_name(f"copy-{stored}")
            limited.api.calibration.ImportStatistic(import_requests(exported.header, exported.data))
            stored += 1
    assert stored >= 1
    assert _stored(limited) <= LIMIT
    works(limited.api)


def test_a_stream_goes_on_where_no_new_one_fits(limited: Server) -> None:
    name = limited.api.statistic_name("s")
    values = activations_like(8, 128, 1)  # a snapshot of 66 kB and a little
    header = activation_header(name, 128, sample_rows=8)
    stream = ActivationStream(limited.api, header)
    stream.send(activation_chunk(1, values[:4]))
    assert stream.finish().durable_seq == 1
    with refused("RESOURCE_EXHAUSTED", "STORAGE_QUOTA"):
        ActivationStream(limited.api, activation_header(name, 128, "b", sample_rows=8))
    stream = ActivationStream(limited.api, header)
    stream.send(activation_chunk(2, values[4:]))
    assert stream.finish().durable_seq == 2
    assert get_statistic(limited.api, name).tokens == 8


def test_a_result_that_does_not_fit_fails_its_layer(limited: Server) -> None:
    job = create_job(limited.api, [layer("w", 192, 256)])  # 196608 bytes, and no room beside it
    upload(limited.api, job.layers[0].name, gaussian(192, 256, 1))
    ended = wait_for_job(limited.api, job.name)
    assert ended.layers[0].state == jobs_pb2.LAYER_FAILED
    assert ended.layers[0].error.code == grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]
    assert "max_stored_bytes" in ended.layers[0].error.message
    assert _stored(limited) == 192 * 256 * 4  # the weight


def test_what_was_stored_is_counted_after_a_restart(limited: Server) -> None:
    job = create_job(limited.api, [layer("w", 64, 128), layer("half", 128, 128)])
    upload(limited.api, job.layers[0].name, gaussian(64, 128, 1))
    half = gaussian(128, 128, 2).astype(np.float32).tobytes()[:4096]
    limited.api.weights.UploadWeights(
        iter([upload_header(job.layers[1].name, 128, 128, F32), upload_chunk(0, half)])
    )
    wait = get_job(limited.api, job.name).layers[0].name
    eventually(
        lambda: get_job(limited.api, job.name).layers[0].state == jobs_pb2.LAYER_SUCCEEDED, wait
    )
    before = _stored(limited)
    limited.kill()
    limited.restart()
    assert _stored(limited) == before
    assert before == sum(
        size for name, size in limited.blob_files().items() if name.startswith("blobs/")
    )


def test_what_is_old_enough_is_deleted(start_server: Callable[..., Server]) -> None:
    server = start_server(
        config="""
        retention {
          ended_jobs_seconds: 1
          unused_statistics_seconds: 1
          abandoned_uploads_seconds: 1
          abandoned_statistics_seconds: 1
          sweep_interval_seconds: 1
        }
        """
    )
    sealed_statistic(server.api, "used", activations_like(64, 64, 1))
    sealed_statistic(server.api, "unused", activations_like(64, 64, 1))
    waiting = create_job(
        server.api, [layer("w", 16, 64, statistic=server.api.statistic_name("used"))]
    )
    data = gaussian(16, 64, 1).astype(np.float32).tobytes()
    server.api.weights.UploadWeights(
        iter([upload_header(waiting.layers[0].name, 16, 64, F32), upload_chunk(0, data[:1024])])
    )
    ended = create_job(server.api, [layer("w", 16, 64)])
    upload(server.api, ended.layers[0].name, gaussian(16, 64, 1))

    def gone() -> bool:
        listed = server.api.calibration.ListStatistics(
            calibration_pb2.ListStatisticsRequest(parent=server.api.parent)
        ).statistics
        jobs = server.api.jobs.ListJobs(jobs_pb2.ListJobsRequest(parent=server.api.parent)).jobs
        return (
            [job.name for job in jobs] == [waiting.name]
            and [statistic.name for statistic in listed] == [server.api.statistic_name("used")]
            and upload_status(server.api, waiting.layers[0].name).committed_size == 0
        )

    eventually(gone, "what is old has gone, what is in use has not", 30)
    collected = parse(server.metrics())
    for kind in ("job", "statistic", "upload"):
        assert collected.value("quantd_collected_total", kind=kind) == 1
    # The upload starts over and the job ends like any other.
    assert upload(server.api, waiting.layers[0].name, gaussian(16, 64, 1)).complete
    works(server.api)
