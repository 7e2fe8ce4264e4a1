"""UploadWeights: what is stored, what is refused, and how an upload is resumed."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator

import grpc
import numpy as np
import pytest
from quantd.v1 import jobs_pb2, recipe_pb2, weights_pb2

from .network import CuttableProxy
from .refusal import refused, unharmed
from .server_process import Api, Server, eventually
from .wire import (
    BF16,
    F16,
    F32,
    F64,
    ITEM_BYTES,
    OpenUpload,
    create_job,
    delete_job,
    encode,
    error_report,
    gaussian,
    get_job,
    layer,
    limits,
    result_tensors,
    upload,
    upload_chunk,
    upload_finish,
    upload_header,
    upload_requests,
    upload_status,
    wait_for_job,
    works,
)

ROWS, COLS = 24, 64
VALUES = gaussian(ROWS, COLS, seed=1).astype(np.float32)
DATA = encode(VALUES, F32)


@pytest.fixture
def target(server: Server, unique: str) -> Iterator[str]:
    """A layer that waits for its F32 weights; gone afterwards."""
    job = create_job(server.api, [layer("w", ROWS, COLS)], job_id=unique)
    yield job.layers[0].name
    delete_job(server.api, job.name)


def _call(server: Server, *requests: weights_pb2.UploadWeightsRequest) -> None:
    server.api.weights.UploadWeights(iter(requests))


def _header(name: str, **changes: int) -> weights_pb2.UploadWeightsRequest:
    fields = {"rows": ROWS, "cols": COLS, "dtype": F32, **changes}
    return upload_header(name, **fields)


def _nothing_committed(server: Server, name: str) -> None:
    status = upload_status(server.api, name)
    assert (status.committed_size, status.complete) == (0, False)
    assert status.size == len(DATA)


def _still_uploadable(server: Server, name: str) -> None:
    """The refused upload hinders no good one; the layer then runs."""
    start = upload_status(server.api, name).committed_size
    assert upload(server.api, name, VALUES, start=start).complete
    job = wait_for_job(server.api, name.split("/layers/")[0])
    assert job.state == jobs_pb2.SUCCEEDED


@pytest.mark.parametrize("dtype", [F64, F32, F16, BF16], ids=["f64", "f32", "f16", "bf16"])
def test_every_dtype_is_stored_exactly(server: Server, unique: str, dtype: int) -> None:
    """INT8 with one scale a row shows the values: they sit on the format's own grid."""
    rng = np.random.default_rng(3)
    codes = rng.integers(-127, 128, (ROWS, COLS))
    codes[:, 0] = 127
    recipe = recipe_pb2.Recipe(format=recipe_pb2.INT8, granularity=recipe_pb2.ROW)
    job = create_job(server.api, [layer("w", ROWS, COLS, dtype)], recipe, job_id=unique)
    status = upload(server.api, job.layers[0].name, codes / 128, dtype, chunk_bytes=1000)
    assert status.complete
    assert status.committed_size == status.size == ROWS * COLS * ITEM_BYTES[dtype]
    assert wait_for_job(server.api, job.name).state == jobs_pb2.SUCCEEDED
    packed = result_tensors(server.api, job.name, "w")["weight_packed"]
    np.testing.assert_array_equal(np.frombuffer(packed.data, np.int8).reshape(ROWS, COLS), codes)
    assert error_report(server.api, job.name, "w")["relative_weight_error"] < 1e-12
    delete_job(server.api, job.name)


def test_unknown_upload_has_nothing_committed(server: Server, target: str) -> None:
    _nothing_committed(server, target)


@pytest.mark.parametrize(
    ("changes", "field", "says"),
    [
        ({"rows": ROWS + 1}, "rows", [ROWS, ROWS + 1]),
        ({"cols": COLS * 2}, "cols", [COLS, COLS * 2]),
        ({"rows": COLS, "cols": ROWS}, "rows", [ROWS, COLS]),
        ({"rows": 0}, "rows", [ROWS, 0]),
        ({"rows": -1}, "rows", [ROWS, -1]),
        ({"rows": 2**62, "cols": 2**62}, "rows", [ROWS, 2**62]),
        ({"dtype": BF16}, "dtype", ["F32", "BF16"]),
        ({"dtype": recipe_pb2.DTYPE_UNSPECIFIED}, "dtype", ["F32"]),
        ({"dtype": 77}, "dtype", ["77"]),
    ],
    ids=str,
)
def test_header_that_contradicts_the_job(
    server: Server, target: str, changes: dict[str, int], field: str, says: list[object]
) -> None:
    with unharmed(server), refused("INVALID_ARGUMENT", field=field, says=says):
        _call(server, _header(target, **changes), upload_chunk(0, DATA), upload_finish(DATA))
    _nothing_committed(server, target)


def test_wrong_crc(server: Server, target: str) -> None:
    with refused("INVALID_ARGUMENT", "CRC_MISMATCH", field="crc32c", says=["deadbeef"]):
        _call(server, _header(target), upload_chunk(0, DATA, crc=0xDEADBEEF), upload_finish(DATA))
    _nothing_committed(server, target)
    _still_uploadable(server, target)


def test_flipped_bit(server: Server, target: str) -> None:
    """The CRC is of the data that was sent, not of the data that came."""
    good = upload_chunk(0, DATA)
    flipped = bytearray(DATA)
    flipped[1234] ^= 0x10
    good.chunk.data = bytes(flipped)
    with refused("INVALID_ARGUMENT", "CRC_MISMATCH", field="crc32c"):
        _call(server, _header(target), good, upload_finish(DATA))
    _nothing_committed(server, target)
    _still_uploadable(server, target)


@pytest.mark.parametrize("offset", [4, -4, len(DATA), 2**62, -(2**63)])
def test_first_chunk_at_a_wrong_offset(server: Server, target: str, offset: int) -> None:
    with refused("OUT_OF_RANGE", "OFFSET_MISMATCH", says=["expected 0", offset]):
        _call(server, _header(target), upload_chunk(offset, DATA[:4096]), upload_finish(DATA))
    _nothing_committed(server, target)


@pytest.mark.parametrize("offset", [0, 1020, 1028], ids=["repeated", "overlapping", "gap"])
def test_later_chunk_at_a_wrong_offset(server: Server, target: str, offset: int) -> None:
    with refused("OUT_OF_RANGE", "OFFSET_MISMATCH", says=["expected 1024", offset]):
        _call(
            server,
            _header(target),
            upload_chunk(0, DATA[:1024]),
            upload_chunk(offset, DATA[1024:2048]),
            upload_finish(DATA),
        )
    assert upload_status(server.api, target).committed_size in (0, 1024)
    _still_uploadable(server, target)


@pytest.mark.parametrize("dtype", [F64, F32, F16, BF16], ids=["f64", "f32", "f16", "bf16"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_not_finite(server: Server, unique: str, dtype: int, bad: float) -> None:
    values = VALUES.astype(np.float64)
    values[13, 57] = bad
    job = create_job(server.api, [layer("w", ROWS, COLS, dtype)], job_id=unique)
    name = job.layers[0].name
    with refused("INVALID_ARGUMENT", "NON_FINITE", "data", ["row 13", "column 57"]):
        upload(server.api, name, values, dtype, chunk_bytes=1024)
    status = upload_status(server.api, name)
    assert status.committed_size <= (13 * COLS + 57) * ITEM_BYTES[dtype]
    assert not status.complete
    assert get_job(server.api, job.name).state == jobs_pb2.ACCEPTING
    delete_job(server.api, job.name)
    works(server.api)


def test_value_that_leaves_binary16(server: Server, unique: str) -> None:
    """1e6 becomes infinite in F16: the client's mistake, found here."""
    values = VALUES.astype(np.float64)
    values[0, 0] = 1e6
    job = create_job(server.api, [layer("w", ROWS, COLS, F16)], job_id=unique)
    with refused("INVALID_ARGUMENT", "NON_FINITE", "data", ["row 0", "column 0"]):
        upload(server.api, job.layers[0].name, values, F16)
    delete_job(server.api, job.name)


def test_too_many_bytes(server: Server, target: str) -> None:
    more = DATA + bytes(256)
    with refused("INVALID_ARGUMENT", field="data", says=[len(DATA)]):
        _call(server, _header(target), upload_chunk(0, more), upload_finish(more))
    _nothing_committed(server, target)
    _still_uploadable(server, target)


def test_too_few_bytes(server: Server, target: str) -> None:
    part = DATA[:4096]
    with refused("INVALID_ARGUMENT", "UPLOAD_INCOMPLETE", says=[len(DATA), 4096]):
        _call(server, _header(target), upload_chunk(0, part), upload_finish(part))
    assert not upload_status(server.api, target).complete
    _still_uploadable(server, target)


def test_half_an_element(server: Server, target: str) -> None:
    with refused("INVALID_ARGUMENT", field="data", says=[4, 1022]):
        _call(server, _header(target), upload_chunk(0, DATA[:1022]), upload_finish(DATA))
    _nothing_committed(server, target)


def test_empty_chunk(server: Server, target: str) -> None:
    with refused("INVALID_ARGUMENT", field="data"):
        _call(server, _header(target), upload_chunk(0, b""), upload_finish(DATA))
    _nothing_committed(server, target)


def test_wrong_digest_starts_over(server: Server, target: str) -> None:
    other = upload_finish(DATA[::-1])
    with refused("DATA_LOSS", "DIGEST_MISMATCH", says=[target]):
        _call(server, _header(target), upload_chunk(0, DATA), other)
    _nothing_committed(server, target)
    assert get_job(server.api, target.split("/layers/")[0]).state == jobs_pb2.ACCEPTING
    _still_uploadable(server, target)


@pytest.mark.parametrize("length", [0, 16, 31, 33, 64])
def test_digest_of_a_wrong_length(server: Server, target: str, length: int) -> None:
    finish = weights_pb2.UploadWeightsRequest(finish=weights_pb2.UploadFinish(sha256=bytes(length)))
    with refused("INVALID_ARGUMENT", field="sha256", says=["32 bytes", length]):
        _call(server, _header(target), upload_chunk(0, DATA), finish)
    assert not upload_status(server.api, target).complete
    _still_uploadable(server, target)


def test_messages_out_of_order(server: Server, target: str) -> None:
    empty = weights_pb2.UploadWeightsRequest()
    orders = {
        "no header": [upload_chunk(0, DATA), upload_finish(DATA)],
        "finish first": [upload_finish(DATA)],
        "two headers": [_header(target), _header(target)],
        "nothing in a message": [_header(target), empty],
        "nothing in the first": [empty],
        "chunk after finish": [
            _header(target),
            upload_chunk(0, DATA[:64]),
            upload_finish(DATA[:64]),
            upload_chunk(64, DATA[64:]),
        ],
    }
    for what, requests in orders.items():
        with refused("INVALID_ARGUMENT") as refusal:
            _call(server, *requests)
        assert refusal.fields, (what, refusal)
    assert not upload_status(server.api, target).complete
    _still_uploadable(server, target)


def test_no_message_at_all(server: Server) -> None:
    with unharmed(server), refused("INVALID_ARGUMENT"):
        _call(server)


def test_chunk_above_the_limit(server: Server, unique: str) -> None:
    limit = limits(server.api).max_chunk_bytes
    rows = limit // (COLS * 4) + 1
    values = gaussian(rows, COLS, seed=2)
    job = create_job(server.api, [layer("w", rows, COLS)], job_id=unique)
    name = job.layers[0].name
    with refused("INVALID_ARGUMENT", field="data", says=[limit, rows * COLS * 4]):
        upload(server.api, name, values, chunk_bytes=rows * COLS * 4)
    assert upload_status(server.api, name).committed_size == 0
    assert upload(server.api, name, values, chunk_bytes=limit).complete
    wait_for_job(server.api, job.name)
    delete_job(server.api, job.name)


def test_message_above_the_limit(server: Server, unique: str) -> None:
    """Refused by the transport before it is in memory as a message: no ErrorInfo then."""
    limit = limits(server.api).max_message_bytes
    rows = limit // (COLS * 4) + 1
    job = create_job(server.api, [layer("w", rows, COLS)], job_id=unique)
    with pytest.raises(grpc.RpcError) as caught:
        upload(server.api, job.layers[0].name, gaussian(rows, COLS, 2), chunk_bytes=1 << 30)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert str(limit) in caught.value.details()
    assert upload_status(server.api, job.layers[0].name).committed_size == 0
    works(server.api)
    delete_job(server.api, job.name)


def test_second_writer(server: Server, target: str) -> None:
    first = OpenUpload(server.api, target, ROWS, COLS)
    first.send(upload_chunk(0, DATA[:1024]))

    def is_held() -> bool:
        """The first writer's header has arrived."""
        try:
            _call(server, _header(target))
        except grpc.RpcError as error:
            return error.code() is grpc.StatusCode.ABORTED
        return False

    eventually(is_held, "the first writer holds the upload")
    with refused("ABORTED", "UPLOAD_IN_PROGRESS", says=[target]):
        _call(server, _header(target), upload_chunk(0, DATA), upload_finish(DATA))
    first.send(upload_chunk(1024, DATA[1024:]), upload_finish(DATA))
    assert first.result().complete
    assert wait_for_job(server.api, target.split("/layers/")[0]).state == jobs_pb2.SUCCEEDED


def test_many_writers_race(server: Server, target: str) -> None:
    """Exactly one of eight completes the upload, however they interleave."""
    outcomes: list[grpc.StatusCode | None] = []

    def attempt() -> None:
        api = server.connect()
        try:
            upload(api, target, VALUES, chunk_bytes=512)
            outcomes.append(None)
        except grpc.RpcError as error:
            outcomes.append(error.code())

    threads = [threading.Thread(target=attempt) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes.count(None) == 1, outcomes
    # A writer that came between two holds finds bytes already there.
    allowed = {
        None,
        grpc.StatusCode.ABORTED,
        grpc.StatusCode.FAILED_PRECONDITION,
        grpc.StatusCode.OUT_OF_RANGE,
    }
    assert set(outcomes) <= allowed, outcomes
    assert wait_for_job(server.api, target.split("/layers/")[0]).state == jobs_pb2.SUCCEEDED


def test_already_complete(server: Server, target: str) -> None:
    upload(server.api, target, VALUES)
    job = target.split("/layers/")[0]
    wait_for_job(server.api, job)
    with unharmed(server), refused("FAILED_PRECONDITION", "UPLOAD_COMPLETE", says=[target]):
        upload(server.api, target, VALUES + 1)


def test_cancelled_job(server: Server, target: str) -> None:
    job = target.split("/layers/")[0]
    server.api.jobs.CancelJob(jobs_pb2.CancelJobRequest(name=job))
    with unharmed(server), refused("FAILED_PRECONDITION", says=[target]):
        upload(server.api, target, VALUES)


def test_upload_into_a_deleted_job(server: Server, unique: str) -> None:
    """The job disappears under an open upload: the writer hears of it, no bytes stay."""
    before = server.blob_files()
    job = create_job(server.api, [layer("w", ROWS, COLS)], job_id=unique)
    name = job.layers[0].name
    writer = OpenUpload(server.api, name, ROWS, COLS)
    writer.send(upload_chunk(0, DATA[:2048]))
    eventually(lambda: set(server.blob_files()) - set(before), "the staging file is there")
    delete_job(server.api, job.name)
    writer.send(upload_chunk(2048, DATA[2048:]), upload_finish(DATA))
    with pytest.raises(grpc.RpcError) as caught:
        writer.result()
    assert caught.value.code() in (
        grpc.StatusCode.NOT_FOUND,
        grpc.StatusCode.FAILED_PRECONDITION,
        grpc.StatusCode.ABORTED,
    )
    eventually(lambda: set(server.blob_files()) <= set(before), "the staging file is gone")
    works(server.api)


@pytest.mark.parametrize("how", ["end", "cancel", "cut"])
def test_client_leaves_halfway_and_resumes(server: Server, target: str, how: str) -> None:
    """A stream that ends without finish keeps what came; the rest follows later."""
    half = 3072
    if how == "end":
        _call_status = server.api.weights.UploadWeights(
            iter([_header(target), upload_chunk(0, DATA[:half])])
        ).status
        assert (_call_status.committed_size, _call_status.complete) == (half, False)
    elif how == "cancel":
        writer = OpenUpload(server.api, target, ROWS, COLS)
        writer.send(upload_chunk(0, DATA[:half]))
        _wait_for_bytes(server, half)
        writer.cancel()
    else:
        proxy = CuttableProxy(server.address)
        api = Api(proxy.address)
        writer = OpenUpload(api, target, ROWS, COLS)
        writer.send(upload_chunk(0, DATA[:half]))
        _wait_for_bytes(server, half)
        proxy.cut()
        with pytest.raises(grpc.RpcError):
            writer.error()
        api.close()
    eventually(
        lambda: upload_status(server.api, target).committed_size == half,
        "what had come is committed",
    )
    eventually(lambda: not server.open_blob_files(), "the staging file is closed")
    with refused("OUT_OF_RANGE", "OFFSET_MISMATCH", says=[f"expected {half}"]):
        _call(server, _header(target), upload_chunk(0, DATA), upload_finish(DATA))
    _still_uploadable(server, target)


def _wait_for_bytes(server: Server, size: int) -> None:
    """Until a staging file has this many bytes: the chunk has arrived."""
    eventually(lambda: size in server.blob_files().values(), f"{size} bytes are staged")


def test_sha256_is_of_the_whole_matrix_after_a_resume(server: Server, target: str) -> None:
    _call(server, _header(target), upload_chunk(0, DATA[:1024]))
    requests = list(upload_requests(target, VALUES, start=1024))
    tail_only = weights_pb2.UploadFinish(sha256=hashlib.sha256(DATA[1024:]).digest())
    requests[-1] = weights_pb2.UploadWeightsRequest(finish=tail_only)
    with refused("DATA_LOSS", "DIGEST_MISMATCH"):
        _call(server, *requests)
    _nothing_committed(server, target)
    _still_uploadable(server, target)


def test_uploads_leave_no_file_open(server: Server) -> None:
    eventually(lambda: not server.open_blob_files(), "every file is closed")
