"""Weighted, cross and residual moments: what they sum, what they refuse, and that a crash leaves no
trace in them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from quantd.v1 import calibration_pb2, jobs_pb2, recipe_pb2

from .killed_stream import stream_through_kills
from .refusal import refused, unharmed
from .server_process import Server, eventually
from .wire import (
    BF16,
    F32,
    F64,
    ActivationStream,
    activation_chunk,
    activation_header,
    activations_like,
    beside_chunk,
    create_job,
    delete_statistic,
    error_report,
    export_statistic,
    gaussian,
    get_job,
    get_statistic,
    import_requests,
    layer,
    limits,
    result_tensors,
    rounded_to,
    seal,
    stream_activations,
    upload,
    wait_for_job,
    works,
)

COLS, ROWS, TOKENS, CHUNK = 64, 48, 480, 32
XHAT = activations_like(TOKENS, COLS, seed=51)
X = XHAT + 0.1 * activations_like(TOKENS, COLS, seed=52)
RESIDUAL = np.random.default_rng(53).standard_normal((TOKENS, ROWS)).astype(np.float32)
WEIGHTS = np.random.default_rng(54).random(TOKENS).astype(np.float32)
WEIGHTS[::7] = 0.0
QUICK_COMMITS = "durability { commit_bytes: 4096 commit_interval_ms: 20 }"


@dataclass(frozen=True, repr=False)
class Kind:
    number: int
    weights: np.ndarray | None = None
    paired: np.ndarray | None = None

    def __repr__(self) -> str:
        return calibration_pb2.StatisticKind.Name(self.number)

    @property
    def header(self) -> dict[str, int]:
        return {
            "kind": self.number,
            "paired_cols": 0 if self.paired is None else self.paired.shape[1],
        }

    def beside(self, part: slice, dtype: int = F32) -> dict[str, Any]:
        return beside_chunk(
            None if self.weights is None else self.weights[part],
            None if self.paired is None else self.paired[part],
            dtype,
        )

    def chunks(self, dtype: int = F32) -> list[calibration_pb2.ActivationChunk]:
        parts = [slice(first, first + CHUNK) for first in range(0, TOKENS, CHUNK)]
        return [
            activation_chunk(seq, XHAT[part], dtype, **self.beside(part, dtype))
            for seq, part in enumerate(parts, 1)
        ]

    def sum(self, dtype: int) -> np.ndarray:
        right = rounded_to(XHAT, dtype)
        left = right if self.paired is None else rounded_to(self.paired, dtype)
        if self.weights is not None:
            left = left * self.weights.astype(np.float64)[:, None]
        return left.T @ right


WEIGHTED = Kind(calibration_pb2.WEIGHTED, weights=WEIGHTS)
CROSS = Kind(calibration_pb2.CROSS_MOMENT, paired=X)
RESIDUAL_MOMENT = Kind(calibration_pb2.RESIDUAL_MOMENT, paired=RESIDUAL)
KINDS = pytest.mark.parametrize(
    "kind", [WEIGHTED, CROSS, RESIDUAL_MOMENT], ids=["weighted", "cross", "residual"]
)


def _stream(server: Server, statistic: str, kind: Kind, dtype: int = F32) -> str:
    name = server.api.statistic_name(statistic)
    stream = ActivationStream(server.api, activation_header(name, COLS, dtype=dtype, **kind.header))
    stream.send(*kind.chunks(dtype))
    assert stream.finish().durable_seq == TOKENS // CHUNK
    return name


@KINDS
@pytest.mark.parametrize("dtype", [F32, BF16], ids=["f32", "bf16"])
def test_sum_of_what_was_sent(server: Server, unique: str, kind: Kind, dtype: int) -> None:
    """Against float64 NumPy: the relative Frobenius error is at most 1e-6."""
    name = _stream(server, unique, kind, dtype)
    sealed = seal(server.api, name)
    assert (sealed.kind, sealed.tokens, sealed.cols) == (kind.number, TOKENS, COLS)
    assert sealed.paired_cols == kind.header["paired_cols"]
    exported = export_statistic(server.api, name)
    assert exported.header.kind == kind.number
    if kind.weights is not None:
        expected = kind.weights.astype(np.float64).sum()
        assert exported.header.weight_sum == pytest.approx(expected, rel=1e-14)
    expected = kind.sum(dtype)
    matrix = exported.matrix()
    assert matrix.shape == expected.shape
    assert np.linalg.norm(matrix - expected) <= 1e-6 * np.linalg.norm(expected)
    # The sample is of the rows of `data`, whatever the kind.
    sent = {row.tobytes() for row in rounded_to(XHAT, dtype)}
    assert {row.tobytes() for row in exported.sample()} == sent


def test_weights_of_one_give_the_second_moment(server: Server, unique: str) -> None:
    ones = Kind(calibration_pb2.WEIGHTED, weights=np.ones(TOKENS, np.float32))
    plain = Kind(calibration_pb2.SECOND_MOMENT)
    weighted, expected = (
        export_statistic(server.api, _sealed(server, f"{unique}-{number}", kind, BF16))
        for number, kind in enumerate((ones, plain))
    )
    assert weighted.data == expected.data
    assert weighted.header.weight_sum == TOKENS


def test_weights_of_block_diagonal_moments(server: Server, unique: str) -> None:
    name = server.api.statistic_name(unique)
    stream_activations(
        server.api,
        name,
        XHAT,
        weights=WEIGHTS,
        kind=calibration_pb2.WEIGHTED,
        layout=calibration_pb2.BLOCK_DIAGONAL,
        block_size=16,
    )
    seal(server.api, name)
    expected = WEIGHTED.sum(F32)
    for number, block in enumerate(export_statistic(server.api, name).matrix()):
        part = slice(16 * number, 16 * number + 16)
        np.testing.assert_allclose(block, expected[part, part], rtol=1e-6, atol=1e-6)


def _sealed(server: Server, statistic: str, kind: Kind, dtype: int = F32) -> str:
    return seal(server.api, _stream(server, statistic, kind, dtype)).name


@KINDS
def test_killed_and_resumed_bit_for_bit(start_server: Callable[..., Server], kind: Kind) -> None:
    server = start_server(config=QUICK_COMMITS)
    undisturbed = _sealed(server, "undisturbed", kind, BF16)
    expected = export_statistic(server.api, undisturbed).data
    digest = get_statistic(server.api, undisturbed).digest
    name = server.api.statistic_name("disturbed")
    header = activation_header(name, COLS, dtype=BF16, **kind.header)
    sealed = stream_through_kills(server, header, kind.chunks(BF16), (3, 8, 9))
    assert (sealed.tokens, sealed.digest) == (TOKENS, digest)
    assert export_statistic(server.api, name).data == expected


NAN = np.where(np.arange(CHUNK) == 17, np.nan, 1.0).astype(np.float32)
PART = slice(CHUNK, 2 * CHUNK)
SHORT = RESIDUAL[PART, :-1]


@pytest.mark.parametrize(
    ("kind", "changes", "reason", "field", "says"),
    [
        (WEIGHTED, {"token_weights": []}, None, "token_weights", [CHUNK, "got 0"]),
        (WEIGHTED, {"token_weights": [1.0] * 31}, None, "token_weights", [CHUNK, "got 31"]),
        (WEIGHTED, {"token_weights": [-0.5] * CHUNK}, "BAD_WEIGHT", "token_weights", ["-0.5"]),
        (WEIGHTED, {"token_weights": NAN.tolist()}, "BAD_WEIGHT", "token_weights", ["row 17"]),
        (WEIGHTED, {"token_weights": [np.inf] * CHUNK}, "BAD_WEIGHT", "token_weights", ["row 0"]),
        (WEIGHTED, beside_chunk(None, X[PART]), None, "paired_data", ["WEIGHTED"]),
        (CROSS, {"paired_data": b"", "paired_crc32c": 0}, None, "paired_data", [COLS]),
        (CROSS, {"paired_crc32c": 0x12345678}, "CRC_MISMATCH", "paired_crc32c", ["12345678"]),
        (CROSS, beside_chunk(None, X[:31]), None, "paired_data", [CHUNK, 31 * COLS * 4]),
        (CROSS, beside_chunk(None, RESIDUAL[PART]), None, "paired_data", [COLS, CHUNK]),
        (
            CROSS,
            beside_chunk(None, X[PART] * NAN[:, None]),
            "NON_FINITE",
            "paired_data",
            ["row 17"],
        ),
        (CROSS, {"token_weights": [1.0] * CHUNK}, None, "token_weights", ["CROSS_MOMENT"]),
        (RESIDUAL_MOMENT, beside_chunk(None, SHORT), None, "paired_data", [ROWS]),
        (RESIDUAL_MOMENT, beside_chunk(None, X[PART]), None, "paired_data", [ROWS]),
    ],
    ids=[
        *("weights missing", "too few weights", "negative weight", "nan weight", "inf weight"),
        *("weights and pairs", "pairs missing", "crc of pairs", "too few pairs", "other columns"),
        *("nan pair", "pairs and weights", "short residual", "wide residual"),
    ],
)
def test_chunk_that_does_not_fit(
    server: Server,
    unique: str,
    kind: Kind,
    changes: dict[str, Any],
    reason: str | None,
    field: str,
    says: list[object],
) -> None:
    """It leaves no trace, and the stream goes on where it was."""
    name = server.api.statistic_name(unique)
    header = activation_header(name, COLS, **kind.header)
    chunks = kind.chunks()
    stream = ActivationStream(server.api, header)
    stream.send(chunks[0])
    stream.flush()
    stream.wait_durable(1)
    stream.send(activation_chunk(2, XHAT[PART], **kind.beside(PART) | changes))
    with refused("INVALID_ARGUMENT", reason, field, says):
        stream.error()
    assert get_statistic(server.api, name).tokens == CHUNK
    works(server.api)
    again = ActivationStream(server.api, header)
    again.send(*chunks)
    assert again.finish().durable_seq == len(chunks)
    seal(server.api, name)
    expected = kind.sum(F32)
    error = np.linalg.norm(export_statistic(server.api, name).matrix() - expected)
    assert error <= 1e-6 * np.linalg.norm(expected)


@KINDS
def test_same_seq_with_other_company(server: Server, unique: str, kind: Kind) -> None:
    """The data is the same; what travels beside it is not."""
    name = server.api.statistic_name(unique)
    stream = ActivationStream(server.api, activation_header(name, COLS, **kind.header))
    stream.send(kind.chunks()[0])
    stream.send(activation_chunk(1, XHAT[:CHUNK], **kind.beside(PART)))
    with refused("INVALID_ARGUMENT", "SEQUENCE_CONFLICT", "crc32c", ["chunk 1"]):
        stream.error()
    eventually(lambda: get_statistic(server.api, name).tokens == CHUNK, "the first one counts")


def test_company_counts_against_the_limit(server: Server, unique: str) -> None:
    limit = limits(server.api).max_chunk_bytes
    rows = limit // (2 * COLS * 4) + 1
    values = np.ones((rows, COLS), np.float32)
    name = server.api.statistic_name(unique)
    stream = ActivationStream(server.api, activation_header(name, COLS, **CROSS.header))
    stream.send(activation_chunk(1, values, **beside_chunk(None, values)))
    with refused("INVALID_ARGUMENT", "CHUNK_TOO_LARGE", "data", [limit, 2 * rows * COLS * 4]):
        stream.error()
    assert get_statistic(server.api, name).tokens == 0


@pytest.mark.parametrize(
    ("header", "field"),
    [
        ({"kind": calibration_pb2.SECOND_MOMENT, "paired_cols": COLS}, "paired_cols"),
        ({"kind": calibration_pb2.WEIGHTED, "paired_cols": COLS}, "paired_cols"),
        ({"kind": calibration_pb2.CROSS_MOMENT, "paired_cols": 32}, "paired_cols"),
        ({"kind": calibration_pb2.RESIDUAL_MOMENT}, "paired_cols"),
        ({"kind": calibration_pb2.RESIDUAL_MOMENT, "paired_cols": -1}, "paired_cols"),
        ({"kind": calibration_pb2.RESIDUAL_MOMENT, "paired_cols": 2**20 + 1}, "paired_cols"),
        ({"kind": calibration_pb2.RESIDUAL_MOMENT, "paired_cols": 2**62}, "paired_cols"),
        (
            {
                "kind": calibration_pb2.CROSS_MOMENT,
                "layout": calibration_pb2.BLOCK_DIAGONAL,
                "block_size": 16,
            },
            "layout",
        ),
    ],
    ids=str,
)
def test_malformed_header(server: Server, unique: str, header: dict[str, int], field: str) -> None:
    name = server.api.statistic_name(unique)
    with unharmed(server), refused("INVALID_ARGUMENT", field=field):
        ActivationStream(server.api, activation_header(name, COLS, **header))


def test_a_matrix_above_the_limit_is_refused_before_memory_is_taken(
    server: Server, unique: str
) -> None:
    name = server.api.statistic_name(unique)
    header = calibration_pb2.ActivationHeader(
        statistic=name,
        stream_id="a",
        dtype=F32,
        cols=2**20,
        kind=calibration_pb2.RESIDUAL_MOMENT,
        paired_cols=2**20,
    )
    with unharmed(server), refused("INVALID_ARGUMENT", field="cols", says=[2**43]):
        ActivationStream(server.api, header)


@KINDS
def test_header_that_contradicts_the_statistic(server: Server, unique: str, kind: Kind) -> None:
    name = _stream(server, unique, kind)
    with unharmed(server), refused("INVALID_ARGUMENT", field="kind"):
        ActivationStream(server.api, activation_header(name, COLS))
    if kind is RESIDUAL_MOMENT:
        other = activation_header(name, COLS, kind=kind.number, paired_cols=ROWS + 1)
        with unharmed(server), refused("INVALID_ARGUMENT", field="paired_cols", says=[ROWS]):
            ActivationStream(server.api, other)


@KINDS
def test_exported_and_imported(server: Server, unique: str, kind: Kind) -> None:
    exported = export_statistic(server.api, _sealed(server, f"{unique}-a", kind))
    header = calibration_pb2.StatisticHeader()
    header.CopyFrom(exported.header)
    header.statistic = server.api.statistic_name(f"{unique}-b")
    imported = server.api.calibration.ImportStatistic(import_requests(header, exported.data))
    assert (imported.kind, imported.paired_cols) == (kind.number, kind.header["paired_cols"])
    assert imported.tokens == TOKENS
    again = export_statistic(server.api, imported.name)
    np.testing.assert_array_equal(again.matrix(), exported.matrix())
    assert again.header.weight_sum == exported.header.weight_sum
    # The same rows; in which order they are kept is the server's business.
    assert sorted(map(tuple, again.sample())) == sorted(map(tuple, exported.sample()))

    header.statistic = server.api.statistic_name(f"{unique}-c")
    header.weight_sum = -1.0
    with unharmed(server), refused("INVALID_ARGUMENT", field="weight_sum"):
        server.api.calibration.ImportStatistic(import_requests(header, exported.data))


def test_an_asymmetric_second_moment_is_still_refused(server: Server, unique: str) -> None:
    matrix = CROSS.sum(F32)
    header = calibration_pb2.StatisticHeader(
        statistic=server.api.statistic_name(unique), cols=COLS, dtype=F64, tokens=TOKENS
    )
    with unharmed(server), refused("INVALID_ARGUMENT", field="data", says=["symmetric"]):
        server.api.calibration.ImportStatistic(import_requests(header, matrix.tobytes()))


@KINDS
def test_merged_parts_equal_the_whole(server: Server, unique: str, kind: Kind) -> None:
    whole = export_statistic(server.api, _sealed(server, f"{unique}-whole", kind))
    parts = []
    for number, rows in enumerate((slice(0, 200), slice(200, TOKENS))):
        parts.append(server.api.statistic_name(f"{unique}-{number}"))
        stream_activations(
            server.api,
            parts[-1],
            XHAT[rows],
            weights=None if kind.weights is None else kind.weights[rows],
            paired=None if kind.paired is None else kind.paired[rows],
            kind=kind.number,
        )
        seal(server.api, parts[-1])
    request = calibration_pb2.MergeStatisticsRequest(
        parent=server.api.parent, statistic_id=f"{unique}-merged", sources=parts
    )
    merged = server.api.calibration.MergeStatistics(request)
    assert (merged.kind, merged.tokens) == (kind.number, TOKENS)
    exported = export_statistic(server.api, merged.name)
    np.testing.assert_allclose(exported.matrix(), whole.matrix(), rtol=1e-9, atol=1e-9)
    assert exported.header.weight_sum == pytest.approx(whole.header.weight_sum, rel=1e-12)

    plain = server.api.statistic_name(f"{unique}-plain")
    stream_activations(server.api, plain, XHAT)
    seal(server.api, plain)
    request.statistic_id = f"{unique}-mixed"
    request.sources.append(plain)
    with unharmed(server), refused("INVALID_ARGUMENT", field="sources", says=["SECOND_MOMENT"]):
        server.api.calibration.MergeStatistics(request)


# Jobs -------------------------------------------------------------------------------------------

WATERSIC = recipe_pb2.Recipe(method=recipe_pb2.WATERSIC, rate_bits=3.0)


def _statistics(server: Server, unique: str) -> dict[str, str]:
    """One sealed statistic of each kind, by the field of a layer that takes it."""
    plain = Kind(calibration_pb2.SECOND_MOMENT)
    kinds = {
        "statistic": WEIGHTED,
        "second_moment_hat": plain,
        "cross_moment": CROSS,
        "residual_moment": RESIDUAL_MOMENT,
    }
    return {
        field: _sealed(server, f"{unique}-{field.replace('_', '-')}", kind)
        for field, kind in kinds.items()
    }


def test_a_recipe_that_would_ignore_a_statistic(server: Server, unique: str) -> None:
    statistics = _statistics(server, unique)
    for field in ("second_moment_hat", "cross_moment", "residual_moment"):
        one = layer("w", ROWS, COLS, **{field: statistics[field]})
        with unharmed(server), refused("INVALID_ARGUMENT", field=field, says=["rtn"]):
            create_job(server.api, [one])


def test_a_weighted_statistic_calibrates(server: Server, unique: str) -> None:
    name = _sealed(server, unique, WEIGHTED)
    job = create_job(
        server.api,
        [layer("w", ROWS, COLS, statistic=name)],
        recipe_pb2.Recipe(format=recipe_pb2.MXFP4, transform=recipe_pb2.WUSH),
        validate_only=True,
    )
    assert job.layers[0].statistic == name


@pytest.mark.parametrize("kind", [CROSS, RESIDUAL_MOMENT], ids=["cross", "residual"])
def test_a_paired_statistic_does_not_calibrate(server: Server, unique: str, kind: Kind) -> None:
    name = _sealed(server, unique, kind)
    with unharmed(server), refused("INVALID_ARGUMENT", field="statistic", says=["WEIGHTED"]):
        create_job(server.api, [layer("w", ROWS, COLS, statistic=name)])


def test_a_layer_waits_for_all_of_its_statistics(server: Server, unique: str) -> None:
    """None of them exists when the job is made; meanwhile, none of them can be deleted."""
    kinds = {
        "statistic": Kind(calibration_pb2.SECOND_MOMENT),
        "second_moment_hat": Kind(calibration_pb2.SECOND_MOMENT),
        "cross_moment": CROSS,
        "residual_moment": RESIDUAL_MOMENT,
    }
    names = {field: f"{unique}-{field.replace('_', '-')}" for field in kinds}
    full = {field: server.api.statistic_name(name) for field, name in names.items()}
    job = create_job(server.api, [layer("w", ROWS, COLS, **full)], WATERSIC)
    assert {field: getattr(job.layers[0], field) for field in full} == full
    upload(server.api, job.layers[0].name, gaussian(ROWS, COLS, 55))
    for field, kind in kinds.items():
        assert get_job(server.api, job.name).state == jobs_pb2.ACCEPTING
        _stream(server, names[field], kind)
        with refused("FAILED_PRECONDITION", says=[job.name]):
            delete_statistic(server.api, full[field])
        seal(server.api, full[field])
    done = wait_for_job(server.api, job.name, within=60)
    assert done.state == jobs_pb2.SUCCEEDED, done
    report = error_report(server.api, job.name, "w")
    assert report["relative_drift_error"] > 0
    digests = {field: get_statistic(server.api, name).digest for field, name in full.items()}
    assert report["statistic_digest"] == digests.pop("statistic")
    assert report["drift_digests"] == digests
    for name in full.values():
        delete_statistic(server.api, name)


def test_asymmetric_gptq_reads_the_moments_of_drift(server: Server, unique: str) -> None:
    plain = _sealed(server, f"{unique}-x", Kind(calibration_pb2.SECOND_MOMENT))
    cross = _sealed(server, f"{unique}-cross", CROSS)
    weight = gaussian(ROWS, COLS, 56)
    codes = []
    for asymmetric in (False, True):
        drift = {"second_moment_hat": plain, "cross_moment": cross} if asymmetric else {}
        recipe = recipe_pb2.Recipe(
            format=recipe_pb2.INT4,
            method=recipe_pb2.GPTQ,
            gptq=recipe_pb2.Gptq(asymmetric=asymmetric),
        )
        job = create_job(server.api, [layer("w", ROWS, COLS, statistic=plain, **drift)], recipe)
        upload(server.api, job.layers[0].name, weight)
        assert wait_for_job(server.api, job.name, within=60).state == jobs_pb2.SUCCEEDED
        codes.append(result_tensors(server.api, job.name, "w")["weight_packed"].data)
    assert codes[0] != codes[1]


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        (Kind(calibration_pb2.SECOND_MOMENT), ["CROSS_MOMENT", "SECOND_MOMENT"]),
        (RESIDUAL_MOMENT, ["CROSS_MOMENT", "RESIDUAL_MOMENT"]),
    ],
    ids=["second", "residual"],
)
def test_a_statistic_that_came_after_the_job_is_checked_too(
    server: Server, unique: str, kind: Kind, says: list[str]
) -> None:
    plain = _sealed(server, f"{unique}-x", Kind(calibration_pb2.SECOND_MOMENT))
    cross = server.api.statistic_name(f"{unique}-cross")
    one = layer("w", ROWS, COLS, statistic=plain, second_moment_hat=plain, cross_moment=cross)
    job = create_job(server.api, [one], WATERSIC)
    upload(server.api, job.layers[0].name, gaussian(ROWS, COLS, 57))
    _sealed(server, f"{unique}-cross", kind)
    failed = wait_for_job(server.api, job.name)
    assert failed.state == jobs_pb2.FAILED
    message = failed.layers[0].error.message
    assert "job.layers[0].cross_moment" in message
    for word in says:
        assert word in message
    # Where it is there already, the job is refused.
    with unharmed(server), refused("INVALID_ARGUMENT", field="cross_moment", says=says):
        create_job(server.api, [one], WATERSIC)


def test_weights_that_are_all_zero_fail_the_layer(server: Server, unique: str) -> None:
    nothing = Kind(calibration_pb2.WEIGHTED, weights=np.zeros(TOKENS, np.float32))
    name = _sealed(server, unique, nothing)
    recipe = recipe_pb2.Recipe(format=recipe_pb2.MXFP4, transform=recipe_pb2.WUSH)
    job = create_job(server.api, [layer("w", ROWS, COLS, statistic=name)], recipe)
    upload(server.api, job.layers[0].name, gaussian(ROWS, COLS, 58))
    failed = wait_for_job(server.api, job.name)
    assert failed.state == jobs_pb2.FAILED
    assert "weight 0" in failed.layers[0].error.message


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"second_moment_hat": "x"}, "cross_moment"),
        ({"cross_moment": "x"}, "second_moment_hat"),
        ({"fusion_group": "qk", "residual_moment": "x"}, "residual_moment"),
        ({"statistic": "", "second_moment_hat": "x", "cross_moment": "x"}, "statistic"),
        ({"residual_moment": "tenants/somebody-else/statistics/x"}, None),
        ({"cross_moment": "not a name"}, "cross_moment"),
    ],
    ids=str,
)
def test_statistics_that_do_not_go_together(
    server: Server, unique: str, fields: dict[str, str], field: str | None
) -> None:
    def full(value: str) -> str:
        return server.api.statistic_name(unique) if value == "x" else value

    given = {"statistic": server.api.statistic_name(unique)} | {
        name: value if name == "fusion_group" else full(value) for name, value in fields.items()
    }
    layers = [layer(name, ROWS, COLS, **given) for name in ("q", "k")]
    code = "PERMISSION_DENIED" if field is None else "INVALID_ARGUMENT"
    with unharmed(server), refused(code, field=field):
        create_job(server.api, layers, WATERSIC)
