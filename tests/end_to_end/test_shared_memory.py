"""Activations that lie in shared memory: the same as those that come with their messages, and
nothing that a client does to its region reaches further than its stream."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import quantd
from quantd.v1 import calibration_pb2
from safetensors.numpy import save_file

from .refusal import refused, unharmed
from .server_process import SANITIZED, Api, Server
from .wire import (
    BF16,
    F32,
    ActivationStream,
    activation_chunk,
    activation_header,
    activations_like,
    crc32c,
    encode,
    export_statistic,
    get_statistic,
    limits,
    seal,
    stream_activations,
    works,
)

TOKENS = {"alpha": "alpha-0123456789abcdef", "beta": "beta-0123456789abcdef"}
COLS = 64
VALUES = activations_like(96, COLS, seed=5)
DATA = encode(VALUES, F32)
ROW_BYTES = COLS * 4


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    config = "\n".join(
        f'tenants {{ name: "{name}" token_sha256: "{hashlib.sha256(token.encode()).hexdigest()}" }}'
        for name, token in TOKENS.items()
    )
    data_dir = tmp_path_factory.mktemp("shared_memory") / "data"
    started = Server(data_dir, config=config, flags=["--shared_memory"]).start()
    yield started
    started.stop()


@pytest.fixture(scope="module")
def alpha(server: Server) -> Api:
    return server.connect("alpha", TOKENS["alpha"])


@pytest.fixture
def region(unique: str) -> Iterator[Path]:
    """One of alpha's, with VALUES in it."""
    path = Path(f"/dev/shm/quantd.alpha.{os.getpid()}-{unique}")
    path.write_bytes(DATA)
    yield path
    path.unlink(missing_ok=True)


def _open(api: Api, unique: str, region: Path | str, **header: object) -> ActivationStream:
    name = region if isinstance(region, str) else region.name
    return ActivationStream(
        api, activation_header(api.statistic_name(unique), COLS, shared_region=name, **header)
    )


def _in_range(
    seq: int, part: slice, *, offset: int | None = None, **more: Any
) -> calibration_pb2.ActivationChunk:
    """Rows of VALUES as they lie in the region, and at `offset` if that is given."""
    start, stop, _ = part.indices(len(VALUES))
    shared = calibration_pb2.SharedRange(
        offset=start * ROW_BYTES if offset is None else offset, bytes=(stop - start) * ROW_BYTES
    )
    fields = {
        "seq": seq,
        "rows": stop - start,
        "crc32c": crc32c(DATA[start * ROW_BYTES : stop * ROW_BYTES]),
        "shared": shared,
        **more,
    }
    return calibration_pb2.ActivationChunk(**fields)


def _same_statistic(api: Api, one: str, other: str) -> None:
    first, second = (seal(api, api.statistic_name(name)) for name in (one, other))
    assert first.tokens == second.tokens
    assert first.digest == second.digest
    moments = [export_statistic(api, api.statistic_name(name)) for name in (one, other)]
    assert moments[0].data == moments[1].data


def _no_names_left() -> None:
    """Of clients; tests name theirs themselves."""
    own = f"quantd.alpha.{os.getpid()}-"
    left = [p.name for p in Path("/dev/shm").glob("quantd.alpha.*") if not p.name.startswith(own)]
    assert not left


def test_equals_what_messages_bring(alpha: Api, unique: str, region: Path) -> None:
    """The same digest and the same bits, with chunks of both sorts in one stream."""
    stream = _open(alpha, unique, region)
    stream.send(_in_range(1, slice(0, 32)))
    stream.send(activation_chunk(2, VALUES[32:64]))
    stream.send(_in_range(3, slice(64, 96)))
    assert stream.finish().durable_seq == 3
    inline = f"{unique}-inline"
    stream_activations(alpha, alpha.statistic_name(inline), VALUES, chunk_rows=32)
    _same_statistic(alpha, unique, inline)


def test_paired_rows_and_weights(alpha: Api, unique: str, region: Path) -> None:
    """Paired data in a range of its own; weights beside a range."""
    cross = f"{unique}-cross"
    header = {"kind": calibration_pb2.CROSS_MOMENT, "paired_cols": COLS}
    stream = _open(alpha, cross, region, **header)
    stream.send(
        _in_range(
            1,
            slice(0, 48),
            paired_shared=calibration_pb2.SharedRange(offset=48 * ROW_BYTES, bytes=48 * ROW_BYTES),
            paired_crc32c=crc32c(DATA[48 * ROW_BYTES :]),
        )
    )
    assert stream.finish().durable_seq == 1
    stream_activations(
        alpha,
        alpha.statistic_name(f"{cross}-inline"),
        VALUES[:48],
        paired=VALUES[48:],
        kind=calibration_pb2.CROSS_MOMENT,
    )
    _same_statistic(alpha, cross, f"{cross}-inline")

    weighted = f"{unique}-weighted"
    weights = np.linspace(0.5, 2, len(VALUES)).astype(np.float32)
    stream = _open(alpha, weighted, region, kind=calibration_pb2.WEIGHTED)
    stream.send(_in_range(1, slice(None), token_weights=weights.tolist()))
    assert stream.finish().durable_seq == 1
    stream_activations(
        alpha,
        alpha.statistic_name(f"{weighted}-inline"),
        VALUES,
        weights=weights,
        chunk_rows=len(VALUES),
        kind=calibration_pb2.WEIGHTED,
    )
    _same_statistic(alpha, weighted, f"{weighted}-inline")


def test_received_ranges_may_be_written_again(alpha: Api, unique: str, region: Path) -> None:
    """One slot for every chunk, and a region that has lost its name and grows."""
    stream = _open(alpha, unique, region)
    with region.open("r+b", buffering=0) as slot:
        region.unlink()
        slot.truncate(0)
        for seq, first in enumerate(range(0, len(VALUES), 16), 1):
            slot.seek(4096)
            slot.write(DATA[first * ROW_BYTES : (first + 16) * ROW_BYTES])
            stream.send(_in_range(seq, slice(first, first + 16), offset=4096))
            stream.wait_received(seq)
        slot.seek(4096)
        slot.write(b"\xff" * 16 * ROW_BYTES)
    stream.finish()
    stream_activations(alpha, alpha.statistic_name(f"{unique}-inline"), VALUES, chunk_rows=16)
    _same_statistic(alpha, unique, f"{unique}-inline")


def test_truncated_while_it_is_open(server: Server, alpha: Api, unique: str, region: Path) -> None:
    """Would end a server that maps it (SIGBUS). What was counted before stays."""
    stream = _open(alpha, unique, region)
    stream.send(_in_range(1, slice(0, 32)))
    stream.wait_received(1)
    os.truncate(region, 40 * ROW_BYTES)
    stream.send(_in_range(2, slice(32, 64)))
    says = [
        f"{32 * ROW_BYTES} bytes at offset {32 * ROW_BYTES}",
        f"got {8 * ROW_BYTES}",
        region.name,
    ]
    with refused("OUT_OF_RANGE", "SHARED_REGION_TOO_SHORT", says=says):
        stream.error()
    assert server.running()
    works(alpha)
    assert get_statistic(alpha, alpha.statistic_name(unique)).tokens == 32
    # The region is whole again: the stream goes on where it was.
    region.write_bytes(DATA)
    again = _open(alpha, unique, region)
    assert again.opened.durable_seq == 1
    again.send(_in_range(2, slice(32, 96)))
    assert again.finish().durable_seq == 2


BOTH = activation_chunk(1, VALUES[:32])
BOTH.shared.CopyFrom(calibration_pb2.SharedRange(offset=0, bytes=32 * ROW_BYTES))


@pytest.mark.parametrize(
    ("chunk", "reason", "field", "says"),
    [
        (BOTH, None, "shared", ["both"]),
        (_in_range(1, slice(0, 32), shared=None), None, "data", ["0 bytes"]),
        (_in_range(1, slice(0, 32), offset=-1), None, "shared", ["-1"]),
        (
            _in_range(1, slice(0, 32), shared=calibration_pb2.SharedRange(bytes=0)),
            None,
            "shared",
            ["0 bytes"],
        ),
        (
            _in_range(1, slice(0, 32), shared=calibration_pb2.SharedRange(bytes=-(2**63))),
            None,
            "shared",
            [-(2**63)],
        ),
        (
            _in_range(1, slice(0, 32), shared=calibration_pb2.SharedRange(bytes=2**62)),
            "CHUNK_TOO_LARGE",
            "data",
            [2**62],
        ),
        (_in_range(1, slice(0, 32), rows=33), None, "data", ["33"]),
        (_in_range(1, slice(0, 32), offset=4), "CRC_MISMATCH", "crc32c", []),
        (
            _in_range(1, slice(0, 32), paired_shared=calibration_pb2.SharedRange(bytes=256)),
            None,
            "paired_data",
            ["256"],
        ),
    ],
    ids=[
        "both",
        "neither",
        "negative-offset",
        "no-bytes",
        "negative-bytes",
        "huge",
        "other-rows",
        "other-bytes",
        "paired-without-its-kind",
    ],
)
def test_refused_ranges(
    server: Server,
    alpha: Api,
    unique: str,
    region: Path,
    chunk: calibration_pb2.ActivationChunk,
    reason: str | None,
    field: str,
    says: list[object],
) -> None:
    stream = _open(alpha, unique, region)
    stream.send(chunk)
    with refused("INVALID_ARGUMENT", reason, field, says):
        stream.error()
    assert server.running()
    assert get_statistic(alpha, alpha.statistic_name(unique)).tokens == 0


@pytest.mark.parametrize("offset", [len(DATA), 2**40, 2**63 - 1])
def test_range_beyond_the_end(alpha: Api, unique: str, region: Path, offset: int) -> None:
    stream = _open(alpha, unique, region)
    stream.send(_in_range(1, slice(0, 32), offset=offset))
    with refused("OUT_OF_RANGE", "SHARED_REGION_TOO_SHORT", says=[offset, "got 0"]):
        stream.error()


def test_both_ranges_count_against_the_limit(alpha: Api, unique: str, region: Path) -> None:
    limit = limits(alpha).max_chunk_bytes
    os.truncate(region, 2 * limit)
    header = {"kind": calibration_pb2.CROSS_MOMENT, "paired_cols": COLS}
    stream = _open(alpha, unique, region, **header)
    shared = calibration_pb2.SharedRange(bytes=limit // 2 + 1)
    stream.send(_in_range(1, slice(0, 32), shared=shared, paired_shared=shared))
    with refused("INVALID_ARGUMENT", "CHUNK_TOO_LARGE", says=[limit, 2 * (limit // 2 + 1)]):
        stream.error()


def test_range_without_a_region(alpha: Api, unique: str) -> None:
    stream = _open(alpha, unique, "")
    stream.send(_in_range(1, slice(0, 32)))
    with refused("INVALID_ARGUMENT", field="shared", says=["shared_region"]):
        stream.error()


def test_not_finite(alpha: Api, unique: str, region: Path) -> None:
    values = VALUES[:32].copy()
    values[17, 41] = np.nan
    region.write_bytes(encode(values, F32))
    stream = _open(alpha, unique, region)
    stream.send(_in_range(1, slice(0, 32), crc32c=crc32c(encode(values, F32))))
    with refused("INVALID_ARGUMENT", "NON_FINITE", "data", ["row 17", "column 41"]):
        stream.error()


def test_resent_chunk_with_other_bytes(alpha: Api, unique: str, region: Path) -> None:
    stream = _open(alpha, unique, region)
    stream.send(_in_range(1, slice(0, 32)), _in_range(1, slice(0, 32)), _in_range(1, slice(32, 64)))
    with refused("INVALID_ARGUMENT", "SEQUENCE_CONFLICT", "crc32c"):
        stream.error()
    assert get_statistic(alpha, alpha.statistic_name(unique)).tokens == 32


def test_another_tenants_region(server: Server, alpha: Api, unique: str, region: Path) -> None:
    """Whether it exists or not."""
    beta = server.connect("beta", TOKENS["beta"])
    for name in (region.name, "quantd.alpha.never"):
        with (
            unharmed(server, beta),
            refused("PERMISSION_DENIED", "FOREIGN_TENANT", says=["shared_region", "alpha"]),
        ):
            _open(beta, unique, name)


@pytest.mark.parametrize(
    "name",
    [
        "quantd.alpha",
        "quantd.alpha.",
        "quantd.alpha.../../etc/passwd",
        "/quantd.alpha.x",
        "x",
        "a/b",
    ],
)
def test_malformed_region_name(server: Server, alpha: Api, unique: str, name: str) -> None:
    with (
        unharmed(server, alpha),
        refused("INVALID_ARGUMENT", "INVALID_NAME", "shared_region"),
    ):
        _open(alpha, unique, name)


def test_region_that_is_not_there(server: Server, alpha: Api, unique: str) -> None:
    with (
        unharmed(server, alpha),
        refused("NOT_FOUND", "NO_SHARED_REGION", says=["quantd.alpha.never", "/dev/shm"]),
    ):
        _open(alpha, unique, "quantd.alpha.never")


def test_off_by_default(start_server: Callable[..., Server], unique: str, region: Path) -> None:
    server = start_server()
    name = region.name.replace("alpha", "default")
    with (
        unharmed(server),
        refused("FAILED_PRECONDITION", "SHARED_MEMORY_OFF", says=["--shared_memory"]),
    ):
        _open(server.api, unique, name)
    with quantd.connect(server.address, progress=False) as client:
        with pytest.raises(quantd.FailedPrecondition, match="--shared_memory"):
            client.stream_activations(unique, VALUES, dtype="f32", shared_memory=True)
        client.stream_activations(unique, VALUES, dtype="f32")
    assert not list(Path("/dev/shm").glob("quantd.default.*"))


def test_python_client(server: Server, alpha: Api, unique: str) -> None:
    """More than its slots hold, in both ways: equal digests and moments; no name is left."""
    tokens = 20_000 if SANITIZED else 200_000
    x = activations_like(tokens, COLS, seed=6).astype(np.float32)
    with quantd.connect(server.address, TOKENS["alpha"], progress=False) as client:
        for name, shared in ((unique, True), (f"{unique}-inline", False)):
            streamed = client.stream_activations(
                name, x, dtype="bf16", stream_id="a", shared_memory=shared
            )
            assert streamed == tokens
    _same_statistic(alpha, unique, f"{unique}-inline")
    _no_names_left()


def test_python_client_outlives_a_killed_server(start_server: Callable[..., Server]) -> None:
    server = start_server(flags=["--shared_memory"])
    port = server.address.rsplit(":", 1)[1]
    server.flags = ["--shared_memory", f"--listen=127.0.0.1:{port}"]
    x = activations_like(2000, COLS, seed=7).astype(np.float32)
    with quantd.connect(server.address, progress=False, retry_timeout_s=30) as client:
        with client.open_activation_stream("s", COLS, dtype="f32", shared_memory=True) as stream:
            for start in range(0, len(x), 100):
                stream.send(x[start : start + 100])
                if start == 700:
                    stream.flush()
                if start == 1000:
                    server.kill()
                    server.restart()
        assert client.seal_statistic("s").tokens == len(x)
        exact = x.astype(np.float64).T @ x.astype(np.float64) / len(x)
        mean = client.export_statistic("s").mean()
        assert np.linalg.norm(mean - exact) <= 1e-6 * np.linalg.norm(exact)
    assert not list(Path("/dev/shm").glob("quantd.default.*"))


@pytest.mark.parametrize("weighted", [False, True])
def test_quantctl(
    server: Server,
    alpha: Api,
    quantctl: Callable[..., Any],
    unique: str,
    tmp_path: Path,
    weighted: bool,
) -> None:
    """More chunks than slots; the result is the same byte for byte."""
    generator = np.random.default_rng(8)
    x = activations_like(100_000, COLS, seed=8).astype(np.float32)  # 24 chunks
    save_file({"weight": generator.standard_normal((32, COLS))}, tmp_path / "w.safetensors")
    save_file(
        {"activations": x, "token_weights": generator.random(len(x), np.float32)},
        tmp_path / "x.safetensors",
    )
    flags = ["--token_weights", tmp_path / "x.safetensors"] if weighted else []
    for name, more in ((unique, ["--shared_memory"]), (f"{unique}-inline", [])):
        quantctl(
            *("--server", server.address, "--token", TOKENS["alpha"], "quantize"),
            *("--weights", tmp_path / "w.safetensors", "--activations", tmp_path / "x.safetensors"),
            *("--statistic", name, "--format", "mxfp4", "--transform", "wush"),
            *("--out", tmp_path / name, *flags, *more),
            check=True,
        )
    _same_statistic(alpha, unique, f"{unique}-inline")
    results = [
        (tmp_path / n / "result.safetensors").read_bytes() for n in (unique, f"{unique}-inline")
    ]
    assert results[0] == results[1]
    _no_names_left()


def test_quantctl_with_a_server_that_takes_none(
    start_server: Callable[..., Server], quantctl: Callable[..., Any], tmp_path: Path
) -> None:
    server = start_server()
    save_file({"weight": VALUES, "activations": VALUES}, tmp_path / "all.safetensors")
    failed = quantctl(
        *("--server", server.address, "quantize", "--shared_memory", "--format", "mxfp4"),
        *("--weights", tmp_path / "all.safetensors", "--tensor", "weight"),
        *("--activations", tmp_path / "all.safetensors", "--out", tmp_path / "out"),
    )
    assert failed.returncode == 1
    assert "start it with --shared_memory" in failed.stderr
    assert not list(Path("/dev/shm").glob("quantd.default.*"))


def test_bfloat16(alpha: Api, unique: str, region: Path) -> None:
    data = encode(VALUES, BF16)
    region.write_bytes(data)
    stream = _open(alpha, unique, region, dtype=BF16)
    shared = calibration_pb2.SharedRange(bytes=len(data))
    stream.send(_in_range(1, slice(None), shared=shared, crc32c=crc32c(data)))
    assert stream.finish().durable_seq == 1
    inline = f"{unique}-inline"
    stream_activations(alpha, alpha.statistic_name(inline), VALUES, BF16, chunk_rows=96)
    _same_statistic(alpha, unique, inline)
