"""Element types and recipes on the wire."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import quantd
from quantd import Moment, Recipe, dtypes
from quantd.v1 import recipe_pb2


def test_bfloat16_rounds_to_nearest_even() -> None:
    one_step = 2.0**-7
    values = np.array([1 + one_step / 2, 1 + 1.5 * one_step, 1 + one_step * 0.51, -3.0, 0.0])
    rounded = quantd.from_bfloat16(quantd.to_bfloat16(values))
    assert list(rounded) == [1.0, 1 + 2 * one_step, 1 + one_step, -3.0, 0.0]


def test_bfloat16_keeps_every_pattern() -> None:
    bits = np.arange(1 << 16, dtype=np.uint16)
    values = quantd.from_bfloat16(bits)
    finite = np.isfinite(values)
    assert np.array_equal(quantd.to_bfloat16(values)[finite], bits[finite])
    assert np.isnan(quantd.from_bfloat16(quantd.to_bfloat16(values[np.isnan(values)]))).all()


@pytest.mark.parametrize("dtype", ["f64", "f32", "f16"])
def test_natural_dtype(dtype: Any) -> None:
    array = np.zeros((2, 3), {"f64": "f8", "f32": "f4", "f16": "f2"}[str(dtype)])
    assert dtypes.natural_dtype(array) == dtype
    assert dtypes.encode(array, dtype).nbytes == 6 * dtypes.ITEM_SIZE[dtype]
    assert dtypes.from_proto(dtypes.to_proto(dtype)) == dtype


def test_encode_takes_bfloat16_bits_and_strided_arrays() -> None:
    x = np.arange(12, dtype=np.float32).reshape(3, 4)
    bits = quantd.to_bfloat16(x)
    assert np.array_equal(dtypes.encode(bits, "f32"), x)
    transposed = dtypes.encode(x.T, "f32")
    assert transposed.tobytes() == np.ascontiguousarray(x.T).tobytes()


def test_encode_refuses_other_types() -> None:
    with pytest.raises(quantd.InvalidArgument, match="int64"):
        dtypes.encode(np.zeros(3, np.int64), "f32")
    with pytest.raises(quantd.InvalidArgument, match="f8"):
        dtypes.encode(np.zeros(3), "f8")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "recipe",
    [
        Recipe("mxfp4"),
        Recipe("nvfp4", "wus", "gptq", scale_rule="mse", damping=0.01),
        Recipe("int8", "random", scale_rule="compressed-tensors", granularity="row", seed=9),
        Recipe("fp8", granularity="block-128x128", transform_block_size=64),
    ],
)
def test_recipe_survives_the_wire(recipe: Recipe) -> None:
    assert Recipe.from_proto(recipe.to_proto()) == recipe


def test_every_enumerator_of_the_api_has_a_name_here() -> None:
    for enum, field in (
        (recipe_pb2.Format, "format"),
        (recipe_pb2.Transform, "transform"),
        (recipe_pb2.Method, "method"),
        (recipe_pb2.Solver, "solver"),
        (recipe_pb2.ScaleRule, "scale_rule"),
        (recipe_pb2.Granularity, "granularity"),
    ):
        for name, value in enum.items():
            if value != 0:
                fields: dict[str, Any] = {"format": "mxfp4", field: name.lower().replace("_", "-")}
                assert getattr(Recipe(**fields).to_proto(), field) == value


def test_recipe_refuses_unknown_names() -> None:
    with pytest.raises(quantd.InvalidArgument, match="expected one of mxfp4") as raised:
        Recipe("mxfp8")  # type: ignore[arg-type]
    assert raised.value.field_violations[0].field == "format"


def test_recipe_from_json() -> None:
    text = (
        '{"format":"mxfp4","transform":"wush","method":"rtn","solver":"marginal",'
        '"scale_rule":"noclip","granularity":"group","group_size":32,"transform_block_size":32,'
        '"damping":null,"seed":0,"rate_bits":0.0}'
    )
    recipe = Recipe.from_json(text)
    assert recipe.scale_rule == "noclip"
    assert recipe.damping is None
    for bad in ("", "[]", "{}", '{"format":"x"}'):
        with pytest.raises(quantd.InvalidArgument):
            Recipe.from_json(bad)


def test_moment_of_activations() -> None:
    x = np.random.default_rng(0).standard_normal((50, 8)).astype(np.float32)
    moment = Moment.of(x, sample_rows=16)
    assert moment.cols == 8
    assert np.allclose(moment.mean(), x.T @ x / 50, atol=1e-6)
    assert moment.sample is not None
    assert moment.sample.shape == (16, 8)
    with pytest.raises(quantd.InvalidArgument, match="expected C x C"):
        Moment(np.zeros((3, 4)), 1)
    with pytest.raises(quantd.InvalidArgument, match="expected rows x 3"):
        Moment(np.zeros((3, 3)), 1, sample=np.zeros((2, 4), np.float32))


def test_moments_of_other_kinds() -> None:
    rng = np.random.default_rng(1)
    xhat = rng.standard_normal((50, 8)).astype(np.float32)
    weights = rng.random(50).astype(np.float32)
    weighted = Moment.of(xhat, token_weights=weights)
    assert weighted.kind == "weighted"
    expected = (xhat * weights[:, None]).T @ xhat / weights.sum()
    assert np.allclose(weighted.mean(), expected, atol=1e-6)
    residual = rng.standard_normal((50, 3)).astype(np.float32)
    moment = Moment.of(xhat, paired=residual, kind="residual-moment")
    assert (moment.cols, moment.matrix.shape) == (8, (3, 8))
    assert np.allclose(moment.mean(), residual.T @ xhat / 50, atol=1e-6)
    with pytest.raises(quantd.InvalidArgument, match="expected C x C"):
        Moment.of(xhat, paired=residual, kind="cross-moment")
    with pytest.raises(quantd.InvalidArgument, match="weight_sum: expected more than 0"):
        Moment(np.zeros((3, 3)), 1, kind="weighted")
    with pytest.raises(quantd.InvalidArgument, match="token_weights: expected 50"):
        Moment.of(xhat, token_weights=weights[:49])
    with pytest.raises(quantd.InvalidArgument, match="paired: expected 50 rows"):
        Moment.of(xhat, paired=residual[:49], kind="residual-moment")
