"""kill -9 and restart: nothing acknowledged is lost, nothing counts twice, same bits."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import grpc
import numpy as np
import pytest
from quantd.v1 import jobs_pb2, recipe_pb2

from .killed_stream import stream_through_kills
from .refusal import refused
from .server_process import Server, eventually
from .wire import (
    BF16,
    F32,
    ActivationStream,
    OpenUpload,
    activation_chunk,
    activation_header,
    activations_like,
    create_job,
    encode,
    error_report,
    export_statistic,
    gaussian,
    get_job,
    get_statistic,
    layer,
    read_artifact,
    result_tensors,
    seal,
    sealed_statistic,
    stream_activations,
    upload,
    upload_chunk,
    upload_header,
    upload_status,
    wait_for_job,
    wait_for_state,
    works,
)

COLS, TOKENS, CHUNK = 64, 480, 16
VALUES = activations_like(TOKENS, COLS, seed=41)
QUICK_COMMITS = "durability { commit_bytes: 4096 commit_interval_ms: 20 }"


def test_upload_resumes_from_committed_size(start_server: Callable[..., Server]) -> None:
    server = start_server()
    rows, cols = 512, 256
    weight = gaussian(rows, cols, 1)
    data = encode(weight, F32)
    job = create_job(server.api, [layer("w", rows, cols)])
    name = job.layers[0].name
    half = len(data) // 2
    status = server.api.weights.UploadWeights(
        iter([upload_header(name, rows, cols, F32), upload_chunk(0, data[:half])])
    ).status
    assert status.committed_size == half
    server.kill()
    server.restart()
    assert upload_status(server.api, name).committed_size == half
    with refused("OUT_OF_RANGE", "OFFSET_MISMATCH", says=[half]):
        upload(server.api, name, weight)
    assert upload(server.api, name, weight, start=half).complete
    assert wait_for_job(server.api, job.name).state == jobs_pb2.SUCCEEDED


def test_upload_killed_in_full_flow(start_server: Callable[..., Server]) -> None:
    """Killed with the stream open: what was committed on the way is there, in whole elements, and
    the finished matrix is the one that was sent (its digest is checked)."""
    server = start_server()
    rows, cols = 4096, 6144  # 96 MiB
    weight = np.random.default_rng(2).standard_normal((rows, cols), dtype=np.float32)
    data = weight.tobytes()
    chunk = 1 << 20
    job = create_job(server.api, [layer("w", rows, cols)])
    name = job.layers[0].name
    writer = OpenUpload(server.api, name, rows, cols)
    for offset in range(0, 80 << 20, chunk):
        writer.send(upload_chunk(offset, data[offset : offset + chunk]))
    writer.wait_committed(1)
    server.kill()
    with pytest.raises(grpc.RpcError):
        writer.error()
    server.restart()
    committed = upload_status(server.api, name).committed_size
    assert 0 < committed <= 80 << 20
    assert upload(server.api, name, weight, chunk_bytes=chunk, start=committed).complete
    server.api.jobs.CancelJob(jobs_pb2.CancelJobRequest(name=job.name))


def test_completed_upload_survives(start_server: Callable[..., Server]) -> None:
    server = start_server()
    weight = gaussian(32, COLS, 3)
    statistic = server.api.statistic_name("later")
    job = create_job(server.api, [layer("w", 32, COLS, statistic=statistic)])
    upload(server.api, job.layers[0].name, weight)
    server.kill()
    server.restart()
    assert upload_status(server.api, job.layers[0].name).complete
    with refused("FAILED_PRECONDITION", "UPLOAD_COMPLETE"):
        upload(server.api, job.layers[0].name, weight)
    sealed_statistic(server.api, "later", VALUES)
    assert wait_for_job(server.api, job.name).state == jobs_pb2.SUCCEEDED


@pytest.mark.parametrize("layout", ["full", "block_diagonal"])
def test_stream_resumes_bit_for_bit(start_server: Callable[..., Server], layout: str) -> None:
    """Killed four times at different moments of one stream; the client resends what was not
    durable. Tokens, digest, matrix and sample equal those of a run that nothing disturbed."""
    shape = {} if layout == "full" else {"layout": 2, "block_size": 32}
    server = start_server(config=QUICK_COMMITS)
    expected = sealed_statistic(server.api, "undisturbed", VALUES, BF16, chunk_rows=CHUNK, **shape)
    expected_data = export_statistic(server.api, expected.name).data
    chunks = [
        activation_chunk(seq, VALUES[first : first + CHUNK], BF16)
        for seq, first in enumerate(range(0, TOKENS, CHUNK), 1)
    ]
    name = server.api.statistic_name("disturbed")
    header = activation_header(name, COLS, dtype=BF16, **shape)
    sealed = stream_through_kills(server, header, chunks, (3, 11, 12, 25))
    assert (sealed.tokens, sealed.digest) == (TOKENS, expected.digest)
    assert export_statistic(server.api, name).data == expected_data


def test_durable_acknowledgement_is_kept(start_server: Callable[..., Server]) -> None:
    """Killed the moment a durable acknowledgement arrives, twenty chunks in a row."""
    server = start_server(config=QUICK_COMMITS)
    name = server.api.statistic_name("acknowledged")
    header = activation_header(name, COLS, dtype=BF16)
    for seq in range(1, 6):
        stream = ActivationStream(server.api, header)
        assert stream.opened.durable_seq == seq - 1
        stream.send(activation_chunk(seq, VALUES[(seq - 1) * CHUNK : seq * CHUNK], BF16))
        stream.flush()
        stream.wait_durable(seq)
        server.kill()
        with pytest.raises(grpc.RpcError):
            stream.error()
        server.restart()
    assert get_statistic(server.api, name).tokens == 5 * CHUNK


def test_resent_chunk_with_another_crc_after_a_restart(
    start_server: Callable[..., Server],
) -> None:
    server = start_server()
    name = server.api.statistic_name("s")
    stream_activations(server.api, name, VALUES[:32], chunk_rows=16)
    server.kill()
    server.restart()
    stream = ActivationStream(server.api, activation_header(name, COLS))
    assert stream.opened.durable_seq == 2
    stream.send(activation_chunk(2, VALUES[40:56]))
    with refused("INVALID_ARGUMENT", "SEQUENCE_CONFLICT", field="crc32c"):
        stream.error()
    assert get_statistic(server.api, name).tokens == 32


def test_jobs_resume_and_give_the_same_bytes(start_server: Callable[..., Server]) -> None:
    """Killed while layers run: finished ones stay as they were, the others are done again."""
    server = start_server()
    rows, cols = 256, 512
    statistic = sealed_statistic(
        server.api, "s", activations_like(256, cols, 1), BF16, chunk_rows=64
    ).name
    weights = [gaussian(rows, cols, 50 + n) for n in range(8)]
    recipe = recipe_pb2.Recipe(format=recipe_pb2.MXFP4, transform=recipe_pb2.WUSH)

    def submit(job_id: str) -> jobs_pb2.Job:
        job = create_job(
            server.api,
            [layer(f"l{n}", rows, cols, statistic=statistic) for n in range(8)],
            recipe,
            job_id=job_id,
        )
        for described, weight in zip(job.layers, weights, strict=True):
            upload(server.api, described.name, weight)
        return job

    undisturbed = submit("undisturbed")
    assert wait_for_job(server.api, undisturbed.name).state == jobs_pb2.SUCCEEDED
    expected = [
        read_artifact(server.api, f"{undisturbed.name}/artifacts/l{n}.safetensors")
        for n in range(8)
    ]

    job = submit("disturbed")
    wait_for_state(server.api, job.name, jobs_pb2.RUNNING, jobs_pb2.SUCCEEDED)
    server.kill()
    server.restart()
    assert wait_for_job(server.api, job.name).state == jobs_pb2.SUCCEEDED
    for n in range(8):
        assert result_tensors(server.api, job.name, f"l{n}") == result_tensors(
            server.api, undisturbed.name, f"l{n}"
        )
        # What was done before is what it was, too.
        name = f"{undisturbed.name}/artifacts/l{n}.safetensors"
        assert read_artifact(server.api, name) == expected[n]


def test_request_id_survives(start_server: Callable[..., Server]) -> None:
    server = start_server()
    job = create_job(server.api, [layer("w", 8, 32)], request_id="retry-me")
    server.kill()
    server.restart()
    again = create_job(server.api, [layer("w", 8, 32)], request_id="retry-me")
    assert again.name == job.name


def test_everything_is_where_it_was(start_server: Callable[..., Server]) -> None:
    """An orderly stop and a kill keep the same things."""
    server = start_server()
    sealed_statistic(server.api, "s", VALUES)
    job = create_job(server.api, [layer("w", 8, COLS, statistic=server.api.statistic_name("s"))])
    upload(server.api, job.layers[0].name, gaussian(8, COLS, 1))
    wait_for_job(server.api, job.name)
    cancelled = create_job(server.api, [layer("w", 8, 32)])
    server.api.jobs.CancelJob(jobs_pb2.CancelJobRequest(name=cancelled.name))
    before = server.stored()
    report = error_report(server.api, job.name, "w")
    server.terminate()
    assert server.wait() == 0
    server.restart()
    assert server.stored() == before
    server.kill()
    server.restart()
    assert server.stored() == before
    assert error_report(server.api, job.name, "w") == report


def test_what_nobody_refers_to_is_removed_at_start(start_server: Callable[..., Server]) -> None:
    """A crash between writing a blob and recording it leaves a file that is found and removed."""
    server = start_server()
    sealed_statistic(server.api, "s", VALUES)
    kept = server.blob_files()
    server.kill()
    (blob,) = kept
    stray = server.data_dir / blob
    stray = stray.with_name(stray.name[:-8] + "0" * 8)
    stray.write_bytes(b"left by a crash")
    server.restart()
    eventually(lambda: server.blob_files() == kept, "the stray file is gone, the others are not")
    assert export_statistic(server.api, server.api.statistic_name("s")).header.tokens == TOKENS


def test_killed_at_random(start_server: Callable[..., Server]) -> None:
    """Writers run while the server is killed again and again; they only retry what failed. At the
    end every token was counted once and the result is that of an undisturbed run."""
    server = start_server(config=QUICK_COMMITS)
    expected = sealed_statistic(server.api, "undisturbed", VALUES, BF16, chunk_rows=CHUNK)
    name = server.api.statistic_name("disturbed")
    parts = np.array_split(VALUES, 3)  # ten chunks each
    address = [server.address]
    stop = threading.Event()
    failures: list[BaseException] = []

    def write(number: int) -> None:
        from .server_process import Api

        while not stop.is_set():
            api = Api(address[0])
            try:
                header = activation_header(name, COLS, f"w{number}", BF16)
                stream = ActivationStream(api, header)
                count = len(parts[number]) // CHUNK
                for seq in range(stream.opened.durable_seq + 1, count + 1):
                    rows = parts[number][(seq - 1) * CHUNK : seq * CHUNK]
                    stream.send(activation_chunk(seq, rows, BF16))
                    time.sleep(0.01)
                if stream.finish().durable_seq == count:
                    return
            except grpc.RpcError as error:
                allowed = (
                    grpc.StatusCode.UNAVAILABLE,
                    grpc.StatusCode.ABORTED,
                    grpc.StatusCode.CANCELLED,
                )
                if error.code() not in allowed:
                    failures.append(error)
                    return
            finally:
                api.close()
            time.sleep(0.02)

    threads = [threading.Thread(target=write, args=(n,)) for n in range(3)]
    for thread in threads:
        thread.start()
    rng = np.random.default_rng(7)
    for _ in range(4):
        time.sleep(rng.uniform(0.02, 0.12))
        server.kill()
        server.restart()
        address[0] = server.address
    for thread in threads:
        thread.join(30)
    stop.set()
    assert not failures
    assert not any(thread.is_alive() for thread in threads)
    sealed = seal(server.api, name)
    assert (sealed.tokens, sealed.digest) == (TOKENS, expected.digest)
    works(server.api)


def test_second_server_on_the_same_data(start_server: Callable[..., Server]) -> None:
    """Two processes on one data directory would undo each other's work: the second refuses."""
    server = start_server()
    second = Server(server.data_dir)
    with pytest.raises(AssertionError, match="before it listened"):
        second.start()
    assert second.process is not None and second.process.returncode > 0
    assert any(str(server.data_dir) in line for line in second.stderr)
    works(server.api)
    assert get_job(server.api, create_job(server.api, [layer("w", 8, 32)]).name)
