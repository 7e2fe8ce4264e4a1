"""Statistics as resources: seal, merge, import, export, list, delete."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
import quantd
from quantd.v1 import calibration_pb2, jobs_pb2, recipe_pb2

from .prometheus_text import parse
from .refusal import refused, unharmed
from .server_process import Server
from .wire import (
    BF16,
    F32,
    F64,
    ActivationStream,
    activation_chunk,
    activation_header,
    activations_like,
    crc32c,
    create_job,
    delete_job,
    export_statistic,
    gaussian,
    get_job,
    get_statistic,
    import_requests,
    layer,
    rounded_to,
    seal,
    sealed_statistic,
    stream_activations,
    upload,
    wait_for_job,
)

COLS, TOKENS = 64, 160
VALUES = activations_like(TOKENS, COLS, seed=11)
LAYOUTS = pytest.mark.parametrize(
    "layout",
    [{}, {"layout": calibration_pb2.BLOCK_DIAGONAL, "block_size": 32}],
    ids=["full", "block_diagonal"],
)


@pytest.fixture(scope="module")
def uncached(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Keeps no sealed statistic in memory: each read is one of the blob."""
    directory = tmp_path_factory.mktemp("uncached") / "data"
    started = Server(directory, config="limits { moment_cache_bytes: 1 }").start()
    yield started
    started.stop()


@pytest.fixture
def one_sum_at_a_time(tmp_path: Path) -> Iterator[Server]:
    """Whatever the sums of its open streams take, one has room on the device."""
    started = Server(
        tmp_path / "data",
        config="limits { open_sum_bytes: 1 moment_cache_bytes: 1 }\n"
        "durability { commit_interval_ms: 20 }",
    ).start()
    yield started
    started.stop()


def test_open_sums_take_turns_on_the_device(server: Server, one_sum_at_a_time: Server) -> None:
    """More open streams than room for their sums, a killed server among it: the same bits."""
    names = [f"turns-{i}" for i in range(5)]
    x = {name: activations_like(2600, COLS, seed=i) for i, name in enumerate(names)}
    one_sum_at_a_time.flags = [f"--listen={one_sum_at_a_time.address}"]
    moments = {}
    for each in (server, one_sum_at_a_time):
        with quantd.connect(each.address, progress=False, retry_timeout_s=60) as client:
            streams = {
                name: client.open_activation_stream(name, COLS, dtype="f32", stream_id="a")
                for name in names
            }
            for start in range(0, 2600, 130):
                for name in names:
                    streams[name].send(x[name][start : start + 130].astype(np.float32))
                if each is one_sum_at_a_time and start == 1300:
                    each.kill()
                    each.restart()
            for name in names:
                streams[name].close()
            sealed = [client.seal_statistic(name) for name in names]
        assert [one.tokens for one in sealed] == [2600] * len(names)
        moments[each.address] = [
            bytes(export_statistic(each.api, each.api.statistic_name(name)).data) for name in names
        ]
    assert moments[server.address] == moments[one_sum_at_a_time.address]
    scrape = parse(one_sum_at_a_time.metrics())
    assert scrape.value("quantd_sum_page_outs_total", device="cpu") > 0
    assert scrape.value("quantd_open_sum_bytes", device="cpu") == 0


@pytest.fixture(autouse=True)
def nothing_left(server: Server) -> Iterator[None]:
    yield
    for statistic in _list(server):
        try:
            _delete(server, statistic.name)
        except grpc.RpcError as error:
            assert error.code() is grpc.StatusCode.FAILED_PRECONDITION


def _list(server: Server) -> list[calibration_pb2.Statistic]:
    request = calibration_pb2.ListStatisticsRequest(parent="tenants/default", page_size=1000)
    return list(server.api.calibration.ListStatistics(request).statistics)


def _delete(server: Server, name: str) -> None:
    server.api.calibration.DeleteStatistic(calibration_pb2.DeleteStatisticRequest(name=name))


def _merge(server: Server, statistic_id: str, *sources: str) -> calibration_pb2.Statistic:
    return server.api.calibration.MergeStatistics(
        calibration_pb2.MergeStatisticsRequest(
            parent="tenants/default", statistic_id=statistic_id, sources=sources
        )
    )


def _name(statistic_id: str) -> str:
    return f"tenants/default/statistics/{statistic_id}"


# Seal -------------------------------------------------------------------------------------------


def test_seal_without_tokens(server: Server, unique: str) -> None:
    stream = ActivationStream(server.api, activation_header(_name(unique), COLS))
    stream.finish()
    with unharmed(server), refused("FAILED_PRECONDITION", "NO_TOKENS", says=[unique]):
        seal(server.api, _name(unique))


def test_seal_with_an_open_stream(server: Server, unique: str) -> None:
    stream = ActivationStream(server.api, activation_header(_name(unique), COLS))
    stream.send(activation_chunk(1, VALUES))
    stream.flush()
    stream.wait_durable(1)
    with refused("FAILED_PRECONDITION", "STREAM_OPEN", says=[unique, "stream a"]):
        seal(server.api, _name(unique))
    assert get_statistic(server.api, _name(unique)).state == calibration_pb2.OPEN
    stream.finish()
    assert seal(server.api, _name(unique)).state == calibration_pb2.SEALED


def test_seal_twice_is_the_same(server: Server, unique: str) -> None:
    first = sealed_statistic(server.api, unique, VALUES)
    assert seal(server.api, _name(unique)) == first


def test_fields_of_a_statistic(server: Server, unique: str) -> None:
    stream_activations(server.api, _name(unique), VALUES[:100], stream_id="x", sample_rows=40)
    stream_activations(server.api, _name(unique), VALUES[100:], stream_id="y", sample_rows=40)
    statistic = get_statistic(server.api, _name(unique))
    assert statistic.name == _name(unique)
    assert statistic.kind == calibration_pb2.SECOND_MOMENT
    assert statistic.layout == calibration_pb2.FULL
    assert (statistic.cols, statistic.tokens, statistic.sample_rows) == (COLS, TOKENS, 40)
    assert statistic.state == calibration_pb2.OPEN
    streams = {s.stream_id: (s.durable_seq, s.tokens) for s in statistic.streams}
    assert streams == {"x": (2, 100), "y": (1, 60)}
    assert statistic.create_time.seconds > 1_600_000_000
    sealed = seal(server.api, _name(unique))
    assert sealed.size_bytes > 0
    assert len(sealed.digest) == 32 and int(sealed.digest, 16) >= 0


# Merge ------------------------------------------------------------------------------------------


@LAYOUTS
def test_merged_parts_equal_the_whole(server: Server, unique: str, layout: dict[str, int]) -> None:
    """Three machines' parts: the digest is equal, the sum too up to the order of additions, and
    the retained sample is the same set of rows."""
    bounds = [(0, 64), (64, 128), (128, TOKENS)]
    for number, (first, last) in enumerate(bounds):
        sealed_statistic(
            server.api,
            f"{unique}-{number}",
            VALUES[first:last],
            BF16,
            stream_id=f"machine-{number}",
            chunk_rows=32,
            **layout,
        )
    merged = _merge(server, unique, *(_name(f"{unique}-{n}") for n in range(3)))
    whole_name = _name(f"{unique}-whole")
    for number, (first, last) in enumerate(bounds):
        stream_activations(
            server.api,
            whole_name,
            VALUES[first:last],
            BF16,
            stream_id=f"machine-{number}",
            chunk_rows=32,
            **layout,
        )
    whole = seal(server.api, whole_name)
    assert merged.state == calibration_pb2.SEALED
    assert (
        (merged.tokens, merged.digest)
        == (whole.tokens, whole.digest)
        == (
            TOKENS,
            whole.digest,
        )
    )
    a, b = export_statistic(server.api, merged.name), export_statistic(server.api, whole.name)
    np.testing.assert_allclose(a.matrix(), b.matrix(), rtol=1e-12, atol=1e-9)
    rows = [sorted(row.tobytes() for row in e.sample()) for e in (a, b)]
    assert rows[0] == rows[1]


def test_merge_of_one(server: Server, unique: str) -> None:
    source = sealed_statistic(server.api, f"{unique}-a", VALUES)
    merged = _merge(server, unique, source.name)
    assert (merged.tokens, merged.digest) == (source.tokens, source.digest)
    assert (
        export_statistic(server.api, merged.name).data
        == export_statistic(server.api, source.name).data
    )


def test_merged_sources_may_go(server: Server, unique: str) -> None:
    source = sealed_statistic(server.api, f"{unique}-a", VALUES)
    merged = _merge(server, unique, source.name)
    before = export_statistic(server.api, merged.name).data
    _delete(server, source.name)
    assert export_statistic(server.api, merged.name).data == before


def test_merge_of_nothing(server: Server, unique: str) -> None:
    with unharmed(server), refused("INVALID_ARGUMENT", field="sources"):
        _merge(server, unique)


def test_merge_of_an_open_one(server: Server, unique: str) -> None:
    stream_activations(server.api, _name(f"{unique}-a"), VALUES)
    with unharmed(server), refused("FAILED_PRECONDITION", "STATISTIC_NOT_SEALED"):
        _merge(server, unique, _name(f"{unique}-a"))


@pytest.mark.parametrize(
    "other",
    [
        {"cols": 128},
        {"layout": calibration_pb2.BLOCK_DIAGONAL, "block_size": 32},
        {"sample_rows": 3},
    ],
    ids=["cols", "layout", "sample_rows"],
)
def test_merge_of_another_geometry(server: Server, unique: str, other: dict[str, int]) -> None:
    cols = other.pop("cols", COLS)
    a = sealed_statistic(server.api, f"{unique}-a", VALUES)
    b = sealed_statistic(server.api, f"{unique}-b", activations_like(40, cols, 3), **other)
    with unharmed(server), refused("INVALID_ARGUMENT", field="sources"):
        _merge(server, unique, a.name, b.name)


def test_merge_onto_an_existing_one(server: Server, unique: str) -> None:
    a = sealed_statistic(server.api, f"{unique}-a", VALUES)
    with unharmed(server), refused("ALREADY_EXISTS", says=[a.name]):
        _merge(server, f"{unique}-a", a.name)


# Import and export ------------------------------------------------------------------------------


@LAYOUTS
def test_export_and_import_round_trip(server: Server, unique: str, layout: dict[str, int]) -> None:
    source = sealed_statistic(server.api, f"{unique}-a", VALUES, BF16, sample_rows=50, **layout)
    exported = export_statistic(server.api, source.name)
    header = calibration_pb2.StatisticHeader()
    header.CopyFrom(exported.header)
    header.statistic = _name(unique)
    imported = server.api.calibration.ImportStatistic(
        import_requests(header, exported.data, chunk_bytes=5000)
    )
    assert imported.state == calibration_pb2.SEALED
    assert (imported.name, imported.tokens, imported.cols) == (_name(unique), TOKENS, COLS)
    again = export_statistic(server.api, _name(unique))
    np.testing.assert_array_equal(again.matrix(), exported.matrix())
    rows = [sorted(row.tobytes() for row in e.sample()) for e in (again, exported)]
    assert rows[0] == rows[1]  # a set of rows: their order is the server's


@pytest.mark.parametrize("dtype", [F64, F32], ids=["f64", "f32"])
@pytest.mark.parametrize(
    "normalization",
    [calibration_pb2.SUM, calibration_pb2.MEAN, calibration_pb2.MOMENT_NORMALIZATION_UNSPECIFIED],
    ids=calibration_pb2.MomentNormalization.Name,
)
def test_import_of_a_clients_own_sum(
    server: Server, unique: str, dtype: int, normalization: int
) -> None:
    x = rounded_to(VALUES, BF16)
    moment = x.T @ x
    sent = moment / TOKENS if normalization == calibration_pb2.MEAN else moment
    header = calibration_pb2.StatisticHeader(
        statistic=_name(unique),
        cols=COLS,
        dtype=dtype,
        normalization=normalization,
        tokens=TOKENS,
    )
    data = sent.astype("<f8" if dtype == F64 else "<f4").tobytes()
    imported = server.api.calibration.ImportStatistic(import_requests(header, data))
    assert imported.tokens == TOKENS
    exported = export_statistic(server.api, _name(unique))
    assert exported.header.sample_rows == 0
    matrix = exported.matrix()
    if exported.header.normalization == calibration_pb2.MEAN:
        matrix = matrix * TOKENS
    np.testing.assert_allclose(matrix, moment, rtol=1e-6, atol=1e-6 * np.abs(moment).max())


def test_imported_statistic_calibrates(server: Server, unique: str) -> None:
    """Same figures with streamed activations and with the matrix that was made of them."""
    source = sealed_statistic(server.api, f"{unique}-a", VALUES, BF16)
    exported = export_statistic(server.api, source.name)
    header = calibration_pb2.StatisticHeader()
    header.CopyFrom(exported.header)
    header.statistic = _name(unique)
    server.api.calibration.ImportStatistic(import_requests(header, exported.data))
    weight = gaussian(32, COLS, 4)
    recipe = recipe_pb2.Recipe(format=recipe_pb2.MXFP4, transform=recipe_pb2.WUSH)
    job = create_job(
        server.api,
        [
            layer("streamed", 32, COLS, statistic=source.name),
            layer("imported", 32, COLS, statistic=_name(unique)),
        ],
        recipe,
        job_id=f"imported-{unique}"[:63].strip("-"),
    )
    for described in job.layers:
        upload(server.api, described.name, weight)
    assert wait_for_job(server.api, job.name).state == jobs_pb2.SUCCEEDED
    from .wire import result_tensors

    results = [result_tensors(server.api, job.name, name) for name in ("streamed", "imported")]
    assert results[0]["weight_packed"] == results[1]["weight_packed"]
    assert results[0]["input_transform"] == results[1]["input_transform"]
    delete_job(server.api, job.name)


GOOD_HEADER = {"cols": COLS, "dtype": F64, "tokens": TOKENS}
GOOD_MATRIX = (lambda x: x.T @ x)(rounded_to(VALUES, BF16))


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"cols": 0}, "cols"),
        ({"cols": -1}, "cols"),
        ({"cols": 2**40}, "cols"),
        ({"dtype": BF16}, "dtype"),
        ({"dtype": recipe_pb2.DTYPE_UNSPECIFIED}, "dtype"),
        ({"dtype": 9}, "dtype"),
        ({"tokens": 0}, "tokens"),
        ({"tokens": -5}, "tokens"),
        ({"layout": 9}, "layout"),
        ({"layout": calibration_pb2.BLOCK_DIAGONAL, "block_size": 0}, "block_size"),
        ({"layout": calibration_pb2.BLOCK_DIAGONAL, "block_size": 48}, "block_size"),
        ({"normalization": 9}, "normalization"),
        ({"sample_rows": -1}, "sample_rows"),
        ({"sample_rows": 5000}, "sample_rows"),
    ],
    ids=str,
)
def test_import_with_a_malformed_header(
    server: Server, unique: str, changes: dict[str, int], field: str
) -> None:
    header = calibration_pb2.StatisticHeader(statistic=_name(unique), **{**GOOD_HEADER, **changes})
    with unharmed(server), refused("INVALID_ARGUMENT", field=field):
        server.api.calibration.ImportStatistic(import_requests(header, GOOD_MATRIX.tobytes()))


def test_import_of_bad_bytes(server: Server, unique: str) -> None:
    header = calibration_pb2.StatisticHeader(statistic=_name(unique), **GOOD_HEADER)
    data = GOOD_MATRIX.tobytes()

    def attempt(matrix: np.ndarray | bytes, **change: object) -> None:
        raw = matrix if isinstance(matrix, bytes) else matrix.tobytes()
        requests = list(import_requests(header, raw, chunk_bytes=8192))
        for key, value in change.items():
            if key == "sha256":
                requests[-1].finish.sha256 = value
            else:
                setattr(requests[2].chunk, key, value)
        server.api.calibration.ImportStatistic(iter(requests))

    nan, inf, skew, negative = (GOOD_MATRIX.copy() for _ in range(4))
    nan[3, 5] = nan[5, 3] = np.nan
    inf[3, 3] = np.inf
    skew[3, 5] += 100 * abs(GOOD_MATRIX).max()
    negative[7, 7] = -1.0
    with unharmed(server):
        for bad in (nan, inf):
            with refused("INVALID_ARGUMENT", field="data", says=["finite"]):
                attempt(bad)
        with refused("INVALID_ARGUMENT") as refusal:
            attempt(skew)
        assert "symmetric" in refusal.message
        with refused("INVALID_ARGUMENT") as refusal:
            attempt(negative)
        assert "diagonal" in refusal.message
        with refused("INVALID_ARGUMENT", says=[len(data)]):
            attempt(data[:-8])
        with refused("INVALID_ARGUMENT", says=[len(data)]):
            attempt(data + bytes(8))
        with refused("INVALID_ARGUMENT", "CRC_MISMATCH", field="crc32c"):
            attempt(data, crc32c=1)
        with refused("OUT_OF_RANGE", "OFFSET_MISMATCH", says=["8192", 8200]):
            attempt(data, offset=8200)
        with refused("DATA_LOSS", "DIGEST_MISMATCH"):
            attempt(data, sha256=bytes(32))
        with refused("INVALID_ARGUMENT", field="sha256"):
            attempt(data, sha256=b"short")
        with refused("INVALID_ARGUMENT"):  # ends before finish
            server.api.calibration.ImportStatistic(iter(list(import_requests(header, data))[:-1]))
        with refused("INVALID_ARGUMENT"):  # no header
            server.api.calibration.ImportStatistic(iter(list(import_requests(header, data))[1:]))


def test_import_onto_an_existing_one(server: Server, unique: str) -> None:
    sealed_statistic(server.api, unique, VALUES)
    header = calibration_pb2.StatisticHeader(statistic=_name(unique), **GOOD_HEADER)
    with unharmed(server), refused("ALREADY_EXISTS", says=[unique]):
        server.api.calibration.ImportStatistic(import_requests(header, GOOD_MATRIX.tobytes()))


def test_export_of_an_open_one(server: Server, unique: str) -> None:
    stream_activations(server.api, _name(unique), VALUES)
    with unharmed(server), refused("FAILED_PRECONDITION", "STATISTIC_NOT_SEALED"):
        export_statistic(server.api, _name(unique))


# Replay -----------------------------------------------------------------------------------------


def test_replay_gives_the_same_bits(server: Server, unique: str) -> None:
    """The same chunks again, in another statistic and with other pauses in between."""
    first = sealed_statistic(server.api, f"{unique}-a", VALUES, BF16, chunk_rows=16)
    stream = ActivationStream(server.api, activation_header(_name(f"{unique}-b"), COLS, dtype=BF16))
    for seq, start in enumerate(range(0, TOKENS, 16), 1):
        stream.send(activation_chunk(seq, VALUES[start : start + 16], BF16))
        if seq % 3 == 0:
            stream.flush()
            stream.wait_durable(seq)
    stream.finish()
    second = seal(server.api, _name(f"{unique}-b"))
    assert first.digest == second.digest
    assert (
        export_statistic(server.api, first.name).data
        == export_statistic(server.api, second.name).data
    )


def test_digest_tells_other_tokens(server: Server, unique: str) -> None:
    changed = VALUES.copy()
    changed[0, 0] += 1
    digests = {
        sealed_statistic(server.api, f"{unique}-{n}", values).digest
        for n, values in enumerate((VALUES, changed, VALUES[:-1]))
    }
    assert len(digests) == 3


def test_parallel_streams(server: Server, unique: str) -> None:
    """Eight writers at once into one statistic: every token counts exactly once."""
    parts = np.array_split(VALUES, 8)
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            stream_activations(
                server.connect(),
                _name(unique),
                parts[number],
                BF16,
                stream_id=f"w{number}",
                chunk_rows=3,
            )
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert seal(server.api, _name(unique)).tokens == TOKENS
    x = rounded_to(VALUES, BF16)
    np.testing.assert_allclose(
        export_statistic(server.api, _name(unique)).matrix(), x.T @ x, rtol=1e-6, atol=1e-3
    )


# Delete and list --------------------------------------------------------------------------------


def test_delete_frees_the_files(server: Server, unique: str) -> None:
    before = server.blob_files()
    statistic = sealed_statistic(server.api, unique, VALUES)
    assert set(server.blob_files()) - set(before)
    _delete(server, statistic.name)
    assert set(server.blob_files()) <= set(before)
    with refused("NOT_FOUND", says=[statistic.name]):
        get_statistic(server.api, statistic.name)
    # The name is free again.
    assert sealed_statistic(server.api, unique, VALUES[:8]).tokens == 8


def test_delete_while_a_job_needs_it(server: Server, unique: str) -> None:
    statistic = sealed_statistic(server.api, unique, VALUES)
    job = create_job(
        server.api,
        [layer("w", 8, COLS, statistic=statistic.name)],
        job_id=f"uses-{unique}"[:63].strip("-"),
    )
    with unharmed(server), refused("FAILED_PRECONDITION", says=[statistic.name]):
        _delete(server, statistic.name)
    upload(server.api, job.layers[0].name, gaussian(8, COLS, 1))
    assert wait_for_job(server.api, job.name).state == jobs_pb2.SUCCEEDED
    _delete(server, statistic.name)
    assert get_job(server.api, job.name).state == jobs_pb2.SUCCEEDED
    delete_job(server.api, job.name)


def test_delete_with_an_open_stream(server: Server, unique: str) -> None:
    stream = ActivationStream(server.api, activation_header(_name(unique), COLS))
    with refused("FAILED_PRECONDITION", "STREAM_OPEN"):
        _delete(server, _name(unique))
    stream.send(activation_chunk(1, VALUES))
    assert stream.finish().durable_seq == 1
    _delete(server, _name(unique))


def test_list_pages(server: Server, unique: str) -> None:
    names = {
        sealed_statistic(server.api, f"{unique}-{n}", VALUES[:4], chunk_rows=4).name
        for n in range(5)
    }
    seen: list[str] = []
    token = ""
    pages = 0
    while True:
        page = server.api.calibration.ListStatistics(
            calibration_pb2.ListStatisticsRequest(
                parent="tenants/default", page_size=2, page_token=token
            )
        )
        assert len(page.statistics) <= 2
        seen += [s.name for s in page.statistics]
        pages += 1
        token = page.next_page_token
        if not token:
            break
    assert pages >= 3
    assert len(seen) == len(set(seen))
    assert names <= set(seen)


def test_list_with_a_token_that_is_none(server: Server) -> None:
    for token in ("no-such-token", "\x00", "A" * 5000):
        with unharmed(server), refused("INVALID_ARGUMENT", field="page_token"):
            server.api.calibration.ListStatistics(
                calibration_pb2.ListStatisticsRequest(parent="tenants/default", page_token=token)
            )


@pytest.mark.parametrize("damage", ["flip", "truncate"])
def test_damaged_blob_is_data_loss(uncached: Server, unique: str, damage: str) -> None:
    """A bit that the disk lost is found on read, named, and nobody computes with it."""
    before = uncached.blob_files()
    statistic = sealed_statistic(uncached.api, unique, VALUES)
    (path,) = set(uncached.blob_files()) - set(before)
    blob = uncached.data_dir / path
    content = bytearray(blob.read_bytes())
    blob.chmod(0o644)
    if damage == "flip":
        content[len(content) // 2] ^= 1
    else:
        del content[-100:]
    blob.write_bytes(content)
    with refused("DATA_LOSS", says=[unique]):
        export_statistic(uncached.api, statistic.name)
    job = create_job(
        uncached.api,
        [layer("w", 8, COLS, statistic=statistic.name)],
        recipe_pb2.Recipe(format=recipe_pb2.INT4, transform=recipe_pb2.WUS),
        job_id=f"damaged-{damage}",
    )
    upload(uncached.api, job.layers[0].name, gaussian(8, COLS, 1), F32)
    ended = wait_for_job(uncached.api, job.name)
    assert ended.state == jobs_pb2.FAILED
    assert ended.layers[0].error.code == grpc.StatusCode.DATA_LOSS.value[0]
    delete_job(uncached.api, job.name)


def test_crc_is_crc32c() -> None:
    assert crc32c(b"123456789") == 0xE3069283
