"""QuantizeTensor: one small tensor, inline, nothing stored."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from quantd.v1 import quantize_pb2, recipe_pb2

from .refusal import refused, unharmed
from .server_process import Server
from .wire import (
    BF16,
    F16,
    F32,
    F64,
    activations_like,
    create_job,
    decode_inline,
    delete_job,
    encode,
    gaussian,
    inline,
    layer,
    limits,
    result_tensors,
    rounded_to,
    sealed_statistic,
    upload,
    wait_for_job,
)

Recipe = recipe_pb2.Recipe
ROWS, COLS = 16, 64
WEIGHT = gaussian(ROWS, COLS, seed=31)
ACTIVATIONS = activations_like(96, COLS, seed=32)
MXFP4 = Recipe(format=recipe_pb2.MXFP4)
WUSH = Recipe(format=recipe_pb2.MXFP4, transform=recipe_pb2.WUSH)


def _quantize(server: Server, **fields: Any) -> quantize_pb2.QuantizeTensorResponse:
    fields.setdefault("recipe", MXFP4)
    return server.api.quantize.QuantizeTensor(quantize_pb2.QuantizeTensorRequest(**fields))


@pytest.mark.parametrize("dtype", [F64, F32, F16, BF16], ids=["f64", "f32", "f16", "bf16"])
def test_every_dtype(server: Server, dtype: int) -> None:
    with unharmed(server):
        response = _quantize(server, weight=inline(WEIGHT, dtype), return_dequantized=True)
    tensors = {t.name: t for t in response.tensors}
    assert tensors["weight_packed"].shape == [ROWS, COLS // 2]
    assert tensors["weight_scale"].shape == [ROWS, COLS // 32]
    weight = rounded_to(WEIGHT, dtype)
    decoded = decode_inline(response.dequantized)
    relative = ((decoded - weight) ** 2).sum() / (weight**2).sum()
    assert 0.001 < relative < 0.03
    report = json.loads(response.report.report_json)
    assert report["relative_weight_error"] == pytest.approx(relative, rel=1e-6)


def test_values_equal_data(server: Server) -> None:
    """A hand-written request with values gives what bytes give."""
    from_bytes = _quantize(server, weight=inline(WEIGHT, F64), return_dequantized=True)
    values = quantize_pb2.InlineTensor(shape=WEIGHT.shape, values=WEIGHT.ravel())
    from_values = _quantize(server, weight=values, return_dequantized=True)
    assert from_values.tensors == from_bytes.tensors
    assert from_values.dequantized == from_bytes.dequantized


def test_equals_the_job(server: Server, unique: str) -> None:
    """The short way and the long way give the same bytes."""
    statistic = sealed_statistic(server.api, unique, ACTIVATIONS).name
    job = create_job(server.api, [layer("w", ROWS, COLS, statistic=statistic)], WUSH, job_id=unique)
    upload(server.api, job.layers[0].name, WEIGHT)
    wait_for_job(server.api, job.name)
    long_way = result_tensors(server.api, job.name, "w")
    short_way = _quantize(
        server, recipe=WUSH, weight=inline(WEIGHT), activations=inline(ACTIVATIONS)
    )
    for tensor in short_way.tensors:
        stored = long_way[tensor.name]
        assert (tensor.dtype, tuple(tensor.shape)) == (stored.dtype, stored.shape), tensor.name
        assert tensor.data == stored.data, tensor.name
    delete_job(server.api, job.name)


def test_activations_give_every_figure(server: Server) -> None:
    report = _quantize(
        server, recipe=WUSH, weight=inline(WEIGHT), activations=inline(ACTIVATIONS)
    ).report
    assert 0 < report.relative_output_error_weight_only < 0.1
    assert 0 < report.relative_output_error_weight_and_activation < 0.1
    assert report.tokens == len(ACTIVATIONS)


def test_second_moment_gives_the_weight_only_figure(server: Server) -> None:
    moment = ACTIVATIONS.T @ ACTIVATIONS / len(ACTIVATIONS)
    report = _quantize(
        server, recipe=WUSH, weight=inline(WEIGHT), second_moment=inline(moment, F64)
    ).report
    assert 0 < report.relative_output_error_weight_only < 0.1
    assert not report.HasField("relative_output_error_weight_and_activation")


def test_same_request_same_answer(server: Server) -> None:
    request = {
        "recipe": Recipe(format=recipe_pb2.INT4, transform=recipe_pb2.RANDOM, seed=9),
        "weight": inline(WEIGHT),
    }
    first, second = _quantize(server, **request), _quantize(server, **request)
    assert first.tensors == second.tensors
    request["recipe"].seed = 10
    assert _quantize(server, **request).tensors != first.tensors


def _tensor(**fields: Any) -> quantize_pb2.InlineTensor:
    return quantize_pb2.InlineTensor(**fields)


def _with(values: np.ndarray, row: int, col: int, value: float) -> np.ndarray:
    changed = values.copy()
    changed[row, col] = value
    return changed


@pytest.mark.parametrize(
    ("weight", "field", "says"),
    [
        (_tensor(), "weight", []),
        (_tensor(dtype=F32, shape=[ROWS, COLS]), "weight", [ROWS * COLS, 0]),
        (
            _tensor(dtype=F32, shape=[ROWS, COLS], data=bytes(100)),
            "data",
            [ROWS * COLS, 25],
        ),
        (_tensor(dtype=F32, shape=[ROWS * COLS], data=encode(WEIGHT, F32)), "shape", []),
        (_tensor(dtype=F32, shape=[2, 8, 64], data=encode(WEIGHT, F32)), "shape", []),
        (_tensor(dtype=F32, shape=[-ROWS, -COLS], data=encode(WEIGHT, F32)), "shape", [-ROWS]),
        (_tensor(dtype=F32, shape=[0, COLS]), "shape", [0]),
        (_tensor(dtype=F32, shape=[2**32, 2**32], data=b""), "shape", [2**32]),
        (_tensor(shape=[ROWS, COLS], data=encode(WEIGHT, F32)), "dtype", []),
        (_tensor(dtype=55, shape=[ROWS, COLS], data=encode(WEIGHT, F32)), "dtype", [55]),
        (_tensor(shape=[2, 32], values=[1.0] * 63), "values", [64, 63]),
        (
            _tensor(dtype=F32, shape=[1, 32], values=[1.0] * 32, data=bytes(128)),
            "weight",
            ["both"],
        ),
        (inline(_with(WEIGHT, 3, 7, np.nan)), "weight", ["row 3", "column 7"]),
        (inline(_with(WEIGHT, 3, 7, -np.inf), BF16), "weight", ["row 3", "column 7"]),
        (_tensor(shape=[1, 32], values=[*[0.0] * 30, float("inf"), 0.0]), "weight", ["column 30"]),
    ],
    ids=[
        "nothing",
        "no data",
        "short data",
        "rank 1",
        "rank 3",
        "negative",
        "no rows",
        "overflow",
        "no dtype",
        "unknown dtype",
        "too few values",
        "data and values",
        "nan",
        "inf",
        "inf value",
    ],
)
def test_malformed_weight(
    server: Server, weight: quantize_pb2.InlineTensor, field: str, says: list[object]
) -> None:
    with unharmed(server), refused("INVALID_ARGUMENT", field=field, says=says) as refusal:
        _quantize(server, weight=weight)
    assert all("weight" in path for path in refusal.fields), refusal


@pytest.mark.parametrize(
    ("activations", "field"),
    [
        (inline(ACTIVATIONS[:, :32]), "shape"),
        (_tensor(dtype=F32, shape=[0, COLS]), "shape"),
        (inline(_with(ACTIVATIONS, 50, 2, np.nan)), "activations"),
    ],
    ids=["cols", "zero tokens", "nan"],
)
def test_malformed_activations(
    server: Server, activations: quantize_pb2.InlineTensor, field: str
) -> None:
    with unharmed(server), refused("INVALID_ARGUMENT", field=field) as refusal:
        _quantize(server, recipe=WUSH, weight=inline(WEIGHT), activations=activations)
    assert all("activations" in path for path in refusal.fields), refusal


MOMENT = ACTIVATIONS.T @ ACTIVATIONS


@pytest.mark.parametrize(
    ("moment", "field"),
    [
        (inline(MOMENT[:32, :32], F64), "shape"),
        (inline(MOMENT[:, :32], F64), "shape"),
        (inline(_with(MOMENT, 4, 4, np.nan), F64), "second_moment"),
        (inline(_with(MOMENT, 4, 4, -1.0), F64), "second_moment"),
        (inline(_with(MOMENT, 4, 5, 1e9), F64), "second_moment"),
    ],
    ids=["cols", "not square", "nan", "negative", "not symmetric"],
)
def test_malformed_second_moment(
    server: Server, moment: quantize_pb2.InlineTensor, field: str
) -> None:
    with unharmed(server), refused("INVALID_ARGUMENT") as refusal:
        _quantize(server, recipe=WUSH, weight=inline(WEIGHT), second_moment=moment)
    assert any("second_moment" in path for path in refusal.fields), refusal
    assert any(field in path for path in refusal.fields), refusal


def test_activations_and_second_moment(server: Server) -> None:
    with unharmed(server), refused("INVALID_ARGUMENT", field="second_moment"):
        _quantize(
            server,
            recipe=WUSH,
            weight=inline(WEIGHT),
            activations=inline(ACTIVATIONS),
            second_moment=inline(MOMENT, F64),
        )


def test_wush_without_calibration(server: Server) -> None:
    with unharmed(server), refused("INVALID_ARGUMENT", field="activations"):
        _quantize(server, recipe=WUSH, weight=inline(WEIGHT))


@pytest.mark.parametrize(
    ("recipe", "cols", "field"),
    [
        (Recipe(), COLS, "format"),
        (Recipe(format=99), COLS, "format"),
        (MXFP4, 48, "cols"),
        (Recipe(format=recipe_pb2.INT4, group_size=7), COLS, "group_size"),
    ],
    ids=["no format", "unknown format", "cols", "group"],
)
def test_malformed_recipe(server: Server, recipe: recipe_pb2.Recipe, cols: int, field: str) -> None:
    with unharmed(server), refused("INVALID_ARGUMENT") as refusal:
        _quantize(server, recipe=recipe, weight=inline(gaussian(4, cols, 1)))
    # Columns are a part of the shape here.
    assert any(field in path or "shape" in path for path in refusal.fields), refusal


def test_too_large_for_inline(server: Server) -> None:
    limit = limits(server.api).max_inline_bytes
    rows = limit // (COLS * 4) + 1
    with unharmed(server), refused("RESOURCE_EXHAUSTED", says=[limit]):
        _quantize(server, weight=inline(gaussian(rows, COLS, 1)))


def test_largest_inline(server: Server) -> None:
    rows = limits(server.api).max_inline_bytes // (COLS * 4)
    response = _quantize(server, weight=inline(gaussian(rows, COLS, 1)))
    assert response.tensors
