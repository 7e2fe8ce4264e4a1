"""StreamActivations: what counts, what is refused, and that nothing counts twice."""

from __future__ import annotations

from collections.abc import Iterator

import grpc
import numpy as np
import pytest
from google.protobuf import empty_pb2
from quantd.v1 import calibration_pb2, recipe_pb2

from .network import CuttableProxy
from .refusal import refused, unharmed
from .server_process import SANITIZED, Api, Server, eventually
from .wire import (
    BF16,
    F16,
    F32,
    F64,
    ITEM_BYTES,
    ActivationStream,
    activation_chunk,
    activation_header,
    activations_like,
    crc32c,
    encode,
    export_statistic,
    get_statistic,
    limits,
    rounded_to,
    seal,
    stream_activations,
    works,
)

COLS = 64
TOKENS = 96
VALUES = activations_like(TOKENS, COLS, seed=5)
ALL_DTYPES = pytest.mark.parametrize(
    "dtype", [F64, F32, F16, BF16], ids=["f64", "f32", "f16", "bf16"]
)


@pytest.fixture
def name(server: Server, unique: str) -> Iterator[str]:
    """A statistic's name that is free; what the test left there is removed."""
    statistic = server.api.statistic_name(unique)
    yield statistic
    try:
        eventually(lambda: _delete(server.api, statistic), "the statistic can be deleted")
    except grpc.RpcError as error:
        assert error.code() is grpc.StatusCode.NOT_FOUND, error


def _delete(api: Api, statistic: str) -> bool:
    try:
        api.calibration.DeleteStatistic(calibration_pb2.DeleteStatisticRequest(name=statistic))
    except grpc.RpcError as error:
        if error.code() is grpc.StatusCode.FAILED_PRECONDITION:
            return False  # a cancelled stream is still being closed
        raise
    return True


def _open(server: Server, name: str, **header: object) -> ActivationStream:
    return ActivationStream(server.api, activation_header(name, COLS, **header))


def _tokens(server: Server, name: str) -> int:
    return get_statistic(server.api, name).tokens


def _chunks(dtype: int = F32, rows: int = 32) -> list[calibration_pb2.ActivationChunk]:
    return [
        activation_chunk(seq, VALUES[first : first + rows], dtype)
        for seq, first in enumerate(range(0, TOKENS, rows), 1)
    ]


def _refused_chunk(
    server: Server,
    name: str,
    chunk: calibration_pb2.ActivationChunk,
    code: str = "INVALID_ARGUMENT",
    reason: str | None = None,
    field: str | None = None,
    says: list[object] | None = None,
    dtype: int = F32,
) -> None:
    """Sends one good chunk and then this one, which is refused; the good one stays counted, the
    bad one leaves no trace, and the stream goes on where it was."""
    stream = _open(server, name, dtype=dtype)
    good = activation_chunk(1, VALUES[:32], dtype)
    stream.send(good)
    stream.flush()
    stream.wait_durable(1)
    stream.send(chunk)
    with refused(code, reason, field, says or []):
        stream.error()
    assert _tokens(server, name) == 32
    works(server.api)
    # A reconnect continues behind the good chunk.
    again = _open(server, name, dtype=dtype)
    assert again.opened.durable_seq == 1
    again.send(activation_chunk(2, VALUES[32:], dtype))
    assert again.finish().durable_seq == 2
    sealed = seal(server.api, name)
    assert sealed.tokens == TOKENS
    x = rounded_to(VALUES, dtype)
    exported = export_statistic(server.api, name)
    np.testing.assert_allclose(exported.matrix(), x.T @ x, rtol=1e-5, atol=1e-5 * (x**2).sum())


@ALL_DTYPES
def test_second_moment_of_what_was_sent(server: Server, name: str, dtype: int) -> None:
    """Against float64 NumPy, in both layouts: the relative Frobenius error is at most 1e-6."""
    x = rounded_to(VALUES, dtype)
    expected = x.T @ x
    last = stream_activations(server.api, name, VALUES, dtype, chunk_rows=10)
    assert last.durable_seq == last.received_seq == 10
    sealed = seal(server.api, name)
    assert (sealed.tokens, sealed.cols, sealed.state) == (TOKENS, COLS, calibration_pb2.SEALED)
    full = export_statistic(server.api, name)
    assert full.header.tokens == TOKENS
    error = np.linalg.norm(full.matrix() - expected) / np.linalg.norm(expected)
    assert error <= 1e-6
    np.testing.assert_array_equal(full.matrix(), full.matrix().T)

    blocks_name = f"{name}-blocks"
    stream_activations(
        server.api,
        blocks_name,
        VALUES,
        dtype,
        chunk_rows=10,
        layout=calibration_pb2.BLOCK_DIAGONAL,
        block_size=16,
    )
    seal(server.api, blocks_name)
    blocks = export_statistic(server.api, blocks_name).matrix()
    assert blocks.shape == (COLS // 16, 16, 16)
    for index, block in enumerate(blocks):
        part = slice(16 * index, 16 * index + 16)
        np.testing.assert_allclose(block, expected[part, part], rtol=1e-6, atol=1e-6)
    _delete(server.api, blocks_name)


def test_sample_is_of_the_rows_that_were_sent(server: Server, name: str) -> None:
    stream_activations(server.api, name, VALUES, BF16, sample_rows=20, sample_seed=7)
    assert seal(server.api, name).sample_rows == 20
    sample = export_statistic(server.api, name).sample()
    assert sample.shape == (20, COLS)
    sent = {row.tobytes() for row in rounded_to(VALUES, BF16)}
    kept = [row.tobytes() for row in sample]
    assert len(set(kept)) == 20
    assert set(kept) <= sent


def test_small_statistic_keeps_every_row(server: Server, name: str) -> None:
    stream_activations(server.api, name, VALUES, BF16)
    seal(server.api, name)
    sample = export_statistic(server.api, name).sample()
    assert sorted(r.tobytes() for r in sample) == sorted(
        r.tobytes() for r in rounded_to(VALUES, BF16)
    )


def test_header_is_answered_at_once(server: Server, name: str) -> None:
    stream = _open(server, name)
    assert stream.opened.durable_seq == stream.opened.received_seq == 0
    assert stream.opened.credit_bytes == limits(server.api).stream_credit_bytes
    stream.cancel()


def test_flush_makes_durable(server: Server, name: str) -> None:
    stream = _open(server, name)
    stream.send(*_chunks())
    stream.wait_received(3)
    stream.flush()
    stream.wait_durable(3)
    assert _tokens(server, name) == TOKENS
    stream.finish()


def test_durable_without_being_asked(server: Server, name: str) -> None:
    """After durability.commit_interval_ms, with the stream open and silent."""
    stream = _open(server, name)
    stream.send(*_chunks())
    stream.wait_durable(3)
    assert _tokens(server, name) == TOKENS
    stream.finish()


def test_acknowledgements_never_go_back(server: Server, name: str) -> None:
    stream = _open(server, name)
    seen = [(0, 0)]
    for chunk in _chunks(rows=4):
        stream.send(chunk)
        if chunk.seq % 5 == 0:
            stream.flush()
    stream.flush()
    while seen[-1][1] < TOKENS // 4:
        answer = stream.read()
        seen.append((answer.received_seq, answer.durable_seq))
        assert answer.durable_seq <= answer.received_seq
    received, durable = zip(*seen, strict=True)
    assert list(received) == sorted(received)
    assert list(durable) == sorted(durable)
    stream.finish()


def test_resent_chunks_count_once(server: Server, name: str) -> None:
    chunks = _chunks()
    first = _open(server, name)
    first.send(*chunks[:2])
    assert first.finish().durable_seq == 2
    again = _open(server, name)
    assert again.opened.durable_seq == 2
    again.send(*chunks)
    assert again.finish().durable_seq == 3
    assert seal(server.api, name).tokens == TOKENS


def test_resent_within_one_stream_counts_once(server: Server, name: str) -> None:
    chunks = _chunks()
    stream = _open(server, name)
    for chunk in (chunks[0], chunks[0], chunks[1], chunks[0], chunks[1], chunks[2]):
        stream.send(chunk)
    assert stream.finish().durable_seq == 3
    assert seal(server.api, name).tokens == TOKENS


@pytest.mark.parametrize("when", ["durable", "not durable yet"])
def test_same_seq_with_another_crc(server: Server, name: str, when: str) -> None:
    first, other = activation_chunk(1, VALUES[:32]), activation_chunk(1, VALUES[32:64])
    stream = _open(server, name)
    stream.send(first)
    if when == "durable":
        stream.finish()
        stream = _open(server, name)
        assert stream.opened.durable_seq == 1
    stream.send(other)
    says = [f"{first.crc32c:08x}", f"{other.crc32c:08x}"]
    with refused("INVALID_ARGUMENT", "SEQUENCE_CONFLICT", "crc32c", says):
        stream.error()
    eventually(lambda: _tokens(server, name) == 32, "the first chunk counts, the other not")


@pytest.mark.parametrize("seq", [3, 4, 1000, 2**62])
def test_sequence_gap(server: Server, name: str, seq: int) -> None:
    chunk = activation_chunk(seq, VALUES[32:])
    _refused_chunk(server, name, chunk, "OUT_OF_RANGE", "SEQUENCE_GAP", says=["expected 2", seq])


@pytest.mark.parametrize("seq", [0, -1, -(2**63)])
def test_sequence_number_below_one(server: Server, name: str, seq: int) -> None:
    chunk = activation_chunk(seq, VALUES[32:])
    _refused_chunk(server, name, chunk, field="seq", says=[seq])


@pytest.mark.parametrize("rows", [0, -1, -(2**62)])
def test_zero_tokens(server: Server, name: str, rows: int) -> None:
    chunk = activation_chunk(2, VALUES[:0], rows=rows)
    _refused_chunk(server, name, chunk, reason="ZERO_TOKENS", field="rows", says=[rows])


@pytest.mark.parametrize("rows", [31, 33, 2**40, 2**62], ids=["fewer", "more", "huge", "overflow"])
def test_rows_that_contradict_the_data(server: Server, name: str, rows: int) -> None:
    chunk = activation_chunk(2, VALUES[:32], rows=rows)
    _refused_chunk(server, name, chunk, field="data", says=[COLS, rows, 32 * COLS * 4])


def test_half_a_row(server: Server, name: str) -> None:
    data = encode(VALUES[:32], F32)[:-4]
    chunk = activation_chunk(2, VALUES[:32], data=data, crc32c=crc32c(data))
    _refused_chunk(server, name, chunk, field="data", says=[len(data)])


def test_no_data(server: Server, name: str) -> None:
    chunk = activation_chunk(2, VALUES[:32], data=b"", crc32c=0)
    _refused_chunk(server, name, chunk, field="data")


def test_data_of_another_dtype(server: Server, name: str) -> None:
    """Twice as many bytes as the header's BF16 needs."""
    chunk = activation_chunk(2, VALUES[:32], F32)
    _refused_chunk(server, name, chunk, field="data", says=["BF16"], dtype=BF16)


def test_wrong_crc(server: Server, name: str) -> None:
    chunk = activation_chunk(2, VALUES[32:], crc32c=0x12345678)
    _refused_chunk(server, name, chunk, reason="CRC_MISMATCH", field="crc32c", says=["12345678"])


@ALL_DTYPES
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_not_finite(server: Server, name: str, dtype: int, bad: float) -> None:
    values = VALUES[32:].copy()
    values[17, 41] = bad
    chunk = activation_chunk(2, values, dtype)
    _refused_chunk(
        server,
        name,
        chunk,
        reason="NON_FINITE",
        field="data",
        says=["row 17", "column 41", "chunk 2"],
        dtype=dtype,
    )


def test_chunk_above_the_limit(server: Server, name: str) -> None:
    limit = limits(server.api).max_chunk_bytes
    rows = limit // (COLS * 4) + 1
    big = np.tile(VALUES, (rows // TOKENS + 1, 1))
    _refused_chunk(
        server, name, activation_chunk(2, big[:rows]), field="data", says=[limit, rows * COLS * 4]
    )
    again = server.api.statistic_name("largest-chunk")
    stream_activations(server.api, again, big[: rows - 1], chunk_rows=rows - 1)
    assert _tokens(server, again) == rows - 1
    _delete(server.api, again)


def test_message_above_the_limit(server: Server, name: str) -> None:
    """Refused by the transport: no ErrorInfo then."""
    rows = limits(server.api).max_message_bytes // (COLS * 4) + 1
    stream = _open(server, name)
    stream.send(activation_chunk(1, np.ones((rows, COLS))))
    with pytest.raises(grpc.RpcError) as caught:
        stream.error()
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert _tokens(server, name) == 0
    works(server.api)


@pytest.mark.parametrize(
    ("header", "field"),
    [
        ({"cols": 0}, "cols"),
        ({"cols": -64}, "cols"),
        ({"cols": 2**20 + 1}, "cols"),
        ({"cols": 2**62}, "cols"),
        ({"dtype": recipe_pb2.DTYPE_UNSPECIFIED}, "dtype"),
        ({"dtype": 99}, "dtype"),
        ({"layout": 99}, "layout"),
        ({"layout": calibration_pb2.BLOCK_DIAGONAL}, "block_size"),
        ({"layout": calibration_pb2.BLOCK_DIAGONAL, "block_size": 8}, "block_size"),
        ({"layout": calibration_pb2.BLOCK_DIAGONAL, "block_size": 48}, "block_size"),
        ({"layout": calibration_pb2.BLOCK_DIAGONAL, "block_size": 512}, "block_size"),
        ({"layout": calibration_pb2.BLOCK_DIAGONAL, "block_size": -16}, "block_size"),
        ({"sample_rows": -1}, "sample_rows"),
        ({"sample_rows": 4097}, "sample_rows"),
    ],
    ids=str,
)
def test_malformed_header(server: Server, name: str, header: dict[str, int], field: str) -> None:
    fields = {"statistic": name, "stream_id": "a", "dtype": F32, "cols": COLS, **header}
    bad = calibration_pb2.ActivationHeader(**fields)
    says = [header[field]] if header.get(field, 99) not in (99, 0) else []
    with unharmed(server), refused("INVALID_ARGUMENT", field=field, says=says):
        ActivationStream(server.api, bad)


def test_kind_that_is_not_known(server: Server, name: str) -> None:
    with unharmed(server), refused("UNIMPLEMENTED", "KIND_NOT_SUPPORTED", says=[99]):
        _open(server, name, kind=99)


def test_token_weights_without_their_kind(server: Server, name: str) -> None:
    """Ignoring them would give another statistic than the caller thinks."""
    chunk = activation_chunk(2, VALUES[32:], token_weights=[1.0] * 64)
    _refused_chunk(server, name, chunk, field="token_weights")


def test_paired_data_without_its_kind(server: Server, name: str) -> None:
    data = encode(VALUES[32:], F32)
    chunk = activation_chunk(2, VALUES[32:], paired_data=data, paired_crc32c=crc32c(data))
    _refused_chunk(server, name, chunk, field="paired_data")


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"cols": 128}, "cols"),
        ({"layout": calibration_pb2.BLOCK_DIAGONAL, "block_size": 32}, "layout"),
        ({"sample_rows": 16}, "sample_rows"),
        ({"sample_seed": 99}, "sample_rows"),
        ({"dtype": BF16}, "dtype"),
    ],
    ids=str,
)
def test_header_that_contradicts_the_statistic(
    server: Server, name: str, changes: dict[str, int], field: str
) -> None:
    stream_activations(server.api, name, VALUES)
    fields = {"statistic": name, "stream_id": "a", "dtype": F32, "cols": COLS, **changes}
    with unharmed(server), refused("INVALID_ARGUMENT", field=field):
        ActivationStream(server.api, calibration_pb2.ActivationHeader(**fields))


def test_another_stream_may_have_another_dtype(server: Server, name: str) -> None:
    stream_activations(server.api, name, VALUES[:48], F32, stream_id="a")
    stream_activations(server.api, name, VALUES[48:], BF16, stream_id="b")
    assert seal(server.api, name).tokens == TOKENS
    x = np.vstack([rounded_to(VALUES[:48], F32), rounded_to(VALUES[48:], BF16)])
    np.testing.assert_allclose(
        export_statistic(server.api, name).matrix(), x.T @ x, rtol=1e-6, atol=1e-4
    )


def test_second_writer(server: Server, name: str) -> None:
    first = _open(server, name)
    first.send(_chunks()[0])
    first.wait_received(1)
    with refused("ABORTED", "STREAM_IN_USE", says=[name, "stream a"]):
        _open(server, name)
    other = _open(server, name, stream_id="b")  # a stream of its own is welcome
    other.finish()
    first.send(*_chunks()[1:])
    assert first.finish().durable_seq == 3
    assert _tokens(server, name) == TOKENS
    eventually(lambda: _reopens(server, name), "the stream is free again")


def _reopens(server: Server, name: str) -> bool:
    try:
        _open(server, name).finish()
    except grpc.RpcError:
        return False
    return True


def test_messages_out_of_order(server: Server, name: str) -> None:
    request = calibration_pb2.StreamActivationsRequest
    header = request(header=activation_header(name, COLS))
    chunk = request(chunk=_chunks()[0])
    flush = request(flush=empty_pb2.Empty())
    for what, messages in {
        "chunk first": [chunk],
        "flush first": [flush],
        "nothing in the first": [request()],
        "two headers": [header, header],
        "nothing in a message": [header, request()],
    }.items():
        with refused("INVALID_ARGUMENT") as refusal:
            list(server.api.calibration.StreamActivations(iter(messages)))
        assert refusal.fields, (what, refusal)
    works(server.api)


def test_no_message_at_all(server: Server) -> None:
    with unharmed(server), refused("INVALID_ARGUMENT"):
        list(server.api.calibration.StreamActivations(iter([])))


def test_sealed(server: Server, name: str) -> None:
    stream_activations(server.api, name, VALUES)
    seal(server.api, name)
    with unharmed(server), refused("FAILED_PRECONDITION", "STATISTIC_SEALED", says=[name]):
        _open(server, name)
    with unharmed(server), refused("FAILED_PRECONDITION", "STATISTIC_SEALED", says=[name]):
        _open(server, name, stream_id="another")


@pytest.mark.parametrize("how", ["cancel", "cut"])
def test_client_vanishes(server: Server, name: str, how: str) -> None:
    """What was acknowledged stays, the stream is free for the next writer, and the final sum is
    bit for bit that of an undisturbed stream."""
    chunks = _chunks(rows=8)
    reference = f"{name}-undisturbed"
    stream_activations(server.api, reference, VALUES, chunk_rows=8)
    expected = seal(server.api, reference)

    proxy = CuttableProxy(server.address)
    api = Api(proxy.address)
    stream = ActivationStream(api, activation_header(name, COLS))
    stream.send(*chunks[:5])
    stream.flush()
    stream.wait_durable(5)
    stream.send(*chunks[5:7])
    stream.wait_received(7)
    if how == "cancel":
        stream.cancel()
    else:
        proxy.cut()
        with pytest.raises(grpc.RpcError):
            stream.error()
    api.close()

    reopened: list[ActivationStream] = []

    def is_free() -> bool:
        try:
            reopened.append(_open(server, name))
        except grpc.RpcError as error:
            assert error.code() is grpc.StatusCode.ABORTED
            return False
        return True

    eventually(is_free, "the stream is free again")
    stream = reopened[0]
    durable = stream.opened.durable_seq
    assert durable in (5, 7)
    stream.send(*chunks[durable:])
    assert stream.finish().durable_seq == len(chunks)
    sealed = seal(server.api, name)
    assert (sealed.tokens, sealed.digest) == (TOKENS, expected.digest)
    assert export_statistic(server.api, name).data == export_statistic(server.api, reference).data
    _delete(server.api, reference)


def test_credit_bounds_what_a_rude_client_can_do(server: Server, name: str) -> None:
    """A client that ignores its credit is slowed down or refused; the server does not grow."""
    cols, rows = 1024, 256
    chunk_bytes = cols * rows * 4
    credit = limits(server.api).stream_credit_bytes
    count = 12 * credit // chunk_bytes
    before = server.resident_bytes()
    stream = ActivationStream(
        server.api,
        activation_header(
            name, cols, layout=calibration_pb2.BLOCK_DIAGONAL, block_size=32, sample_rows=0
        ),
    )
    values = np.ones((rows, cols), np.float32)
    data = encode(values, F32)
    fields = {"data": data, "crc32c": crc32c(data)}
    for seq in range(1, count + 1):
        stream.send(activation_chunk(seq, values, **fields))
    try:
        assert stream.finish().durable_seq == count
        assert _tokens(server, name) == count * rows
    except grpc.RpcError as error:
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    # A sanitizer keeps freed memory for a while.
    spare = (448 << 20) if SANITIZED else (64 << 20)
    assert server.resident_bytes() - before < 2 * credit + spare
    works(server.api)


def test_largest_and_smallest_values_survive(server: Server, name: str) -> None:
    """Squares of F32's extremes leave F32, not F64: the sum is finite and right."""
    values = np.array([[3e38, 1e-30] + [0.0] * (COLS - 2)])
    stream_activations(server.api, name, values, F32)
    seal(server.api, name)
    x = rounded_to(values, F32)
    matrix = export_statistic(server.api, name).matrix()
    assert np.isfinite(matrix).all()
    np.testing.assert_allclose(matrix, x.T @ x, rtol=1e-6)


def test_dtype_sizes_are_those_of_the_protocol() -> None:
    for dtype, size in ITEM_BYTES.items():
        assert len(encode(VALUES[:1], dtype)) == COLS * size


def test_streams_leave_no_file_open(server: Server) -> None:
    eventually(lambda: not server.open_blob_files(), "every file is closed")
