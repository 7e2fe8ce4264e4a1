"""A full disk, for real: the data directory on a tmpfs of a few MiB.

The mount lives in the server's own mount namespace; the tests reach it through /proc/PID/root.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import numpy as np
import pytest
from quantd.v1 import calibration_pb2, jobs_pb2

from .conftest import tmpfs_wrapper
from .refusal import refused
from .server_process import Server, eventually
from .wire import (
    BF16,
    F32,
    ActivationStream,
    activation_chunk,
    activation_header,
    activations_like,
    create_job,
    encode,
    export_statistic,
    gaussian,
    get_statistic,
    layer,
    result_tensors,
    seal,
    sealed_statistic,
    upload,
    upload_chunk,
    upload_finish,
    upload_header,
    upload_status,
    wait_for_job,
    works,
)


@pytest.fixture
def small_disk(start_server: Callable[..., Server], tmp_path: Path) -> Server:
    return start_server(
        "disk",
        wrapper=tmpfs_wrapper(tmp_path / "disk", "24m"),
        config="durability { commit_bytes: 65536 commit_interval_ms: 20 }",
    )


def _inside(server: Server) -> Path:
    return Path(f"/proc/{server.pid}/root{server.data_dir}")


def _files(server: Server) -> set[Path]:
    """The blobs; the database has journals that come and go."""
    return {p for p in _inside(server).rglob("*") if p.is_file() and ".db" not in p.name}


@contextmanager
def _filled(server: Server, leave: int = 0) -> Iterator[None]:
    """Takes all of the disk but `leave` bytes."""
    filler = _inside(server) / "filler.tmp"
    with filler.open("wb", buffering=0) as file:
        block = bytes(4096)
        try:
            while True:
                file.write(block)
        except OSError as error:
            assert error.errno == 28, error  # ENOSPC
        file.truncate(max(0, file.tell() - leave))
    try:
        yield
    finally:
        filler.unlink()


def test_upload_stops_and_resumes(small_disk: Server) -> None:
    server = small_disk
    rows, cols = 1024, 1024  # 4 MiB
    weight = gaussian(rows, cols, 1)
    data = encode(weight, F32)
    job = create_job(server.api, [layer("w", rows, cols)])
    name = job.layers[0].name
    with _filled(server, leave=1 << 20):
        with refused("RESOURCE_EXHAUSTED", says=["space"]):
            upload(server.api, name, weight)
        committed = upload_status(server.api, name).committed_size
        assert committed < len(data)
        assert server.api.health() == "SERVING"
        works(server.api)
        with refused("RESOURCE_EXHAUSTED"):
            upload(server.api, name, weight, start=committed)
        committed = upload_status(server.api, name).committed_size
    assert upload(server.api, name, weight, start=committed).complete
    assert wait_for_job(server.api, job.name).state == jobs_pb2.SUCCEEDED
    assert result_tensors(server.api, job.name, "w")


def test_full_disk_at_the_end_of_an_upload(small_disk: Server) -> None:
    """No room for the record that says complete: not complete, then."""
    server = small_disk
    rows, cols = 64, 64
    weight = gaussian(rows, cols, 1)
    data = encode(weight, F32)
    job = create_job(server.api, [layer("w", rows, cols)])
    name = job.layers[0].name
    requests = [upload_header(name, rows, cols, F32), upload_chunk(0, data), upload_finish(data)]
    with _filled(server):
        with refused("RESOURCE_EXHAUSTED"):
            server.api.weights.UploadWeights(iter(requests))
        assert not upload_status(server.api, name).complete
        works(server.api)
    start = upload_status(server.api, name).committed_size
    assert upload(server.api, name, weight, start=start).complete
    assert wait_for_job(server.api, job.name).state == jobs_pb2.SUCCEEDED


def test_stream_never_acknowledges_what_is_not_stored(small_disk: Server) -> None:
    """While the disk is full no durable_seq moves; with room again the stream goes on, and the
    final statistic is that of an undisturbed run."""
    server = small_disk
    cols, chunk = 256, 32
    values = activations_like(10 * chunk, cols, 3)
    expected = sealed_statistic(server.api, "undisturbed", values, BF16, chunk_rows=chunk)
    chunks = [
        activation_chunk(seq, values[first : first + chunk], BF16)
        for seq, first in enumerate(range(0, len(values), chunk), 1)
    ]
    name = server.api.statistic_name("disturbed")
    header = activation_header(name, cols, dtype=BF16)
    stream = ActivationStream(server.api, header)
    stream.send(*chunks[:4])
    stream.flush()
    stream.wait_durable(4)
    with _filled(server):
        stream.send(*chunks[4:8])
        stream.flush()
        with refused("RESOURCE_EXHAUSTED", says=[name]):
            stream.error()
        assert stream.last.durable_seq == 4
        assert get_statistic(server.api, name).tokens == 4 * chunk
        assert server.api.health() == "SERVING"
    reopened: list[ActivationStream] = []

    def opens() -> bool:
        try:
            reopened.append(ActivationStream(server.api, header))
        except grpc.RpcError as error:
            assert error.code() is grpc.StatusCode.ABORTED
            return False
        return True

    eventually(opens, "the stream is free again")
    assert reopened[0].opened.durable_seq == 4
    reopened[0].send(*chunks[4:])
    assert reopened[0].finish().durable_seq == len(chunks)
    sealed = seal(server.api, name)
    assert (sealed.tokens, sealed.digest) == (len(values), expected.digest)
    assert (
        export_statistic(server.api, name).data == export_statistic(server.api, expected.name).data
    )


def test_jobs_and_statistics_are_not_created_in_part(small_disk: Server) -> None:
    server = small_disk
    with _filled(server):
        # The journal may still have a page to spare; not for a thousand layers.
        layers = [layer(f"layer-{n:04}", 64, 64) for n in range(4000)]
        with refused("RESOURCE_EXHAUSTED"):
            create_job(server.api, layers, job_id="too-much")
        assert not server.api.jobs.ListJobs(jobs_pb2.ListJobsRequest(parent="tenants/default")).jobs
        works(server.api)
    job = create_job(server.api, layers[:1], job_id="too-much")
    upload(server.api, job.layers[0].name, gaussian(64, 64, 1))
    assert wait_for_job(server.api, job.name).state == jobs_pb2.SUCCEEDED


def test_merge_and_import_leave_nothing_behind(small_disk: Server) -> None:
    server = small_disk
    source = sealed_statistic(server.api, "s", activations_like(64, 512, 1), sample_rows=8)
    exported = export_statistic(server.api, source.name)
    before = _files(server)
    with _filled(server, leave=64 << 10):
        with refused("RESOURCE_EXHAUSTED"):
            server.api.calibration.MergeStatistics(
                calibration_pb2.MergeStatisticsRequest(
                    parent="tenants/default", statistic_id="merged", sources=[source.name]
                )
            )
        listed = server.api.calibration.ListStatistics(
            calibration_pb2.ListStatisticsRequest(parent="tenants/default")
        )
        assert [s.name for s in listed.statistics] == [source.name]
        assert export_statistic(server.api, source.name).data == exported.data
    assert _files(server) <= before


def test_results_wait_for_room(small_disk: Server) -> None:
    """A layer whose result finds no room fails or waits, and says so; it is never half there."""
    server = small_disk
    rows, cols = 512, 1024
    job = create_job(server.api, [layer("w", rows, cols)])
    name = job.layers[0].name
    data = encode(gaussian(rows, cols, 1), F32)
    writer = server.api.weights
    writer.UploadWeights(iter([upload_header(name, rows, cols, F32), upload_chunk(0, data)]))
    with _filled(server, leave=100 << 10):
        writer.UploadWeights(iter([upload_header(name, rows, cols, F32), upload_finish(data)]))

        def ended_or_waits() -> bool:
            state = server.api.jobs.GetJob(jobs_pb2.GetJobRequest(name=job.name)).layers[0].state
            return state in (
                jobs_pb2.LAYER_FAILED,
                jobs_pb2.LAYER_QUEUED,
            )

        eventually(ended_or_waits, "the layer has failed or waits")
        described = server.api.jobs.GetJob(jobs_pb2.GetJobRequest(name=job.name)).layers[0]
        if described.state == jobs_pb2.LAYER_FAILED:
            assert described.error.code == grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]
        assert server.running()
        works(server.api)


def test_restart_on_a_full_disk(start_server: Callable[..., Server], tmp_path: Path) -> None:
    """With room for little more than the database, the server still starts and answers."""
    server = start_server("disk", wrapper=tmpfs_wrapper(tmp_path / "disk", "3m"))
    job = create_job(server.api, [layer("w", 1024, 1024)])
    with refused("RESOURCE_EXHAUSTED"):
        upload(server.api, job.layers[0].name, np.ones((1024, 1024)))
    assert not upload_status(server.api, job.layers[0].name).complete
    assert server.api.health() == "SERVING"
    works(server.api)
