"""Decoding and activation quantization against independent, slow formulas and golden data."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors import safe_open

from quantd import QuantizedLayer, Recipe, from_bfloat16, to_bfloat16
from quantd.errors import InvalidArgument
from quantd.formats import (
    decode,
    element_values,
    fake_quantize,
    unpack_codes,
)

GOLDEN = Path(__file__).parents[3] / "tests" / "golden" / "wush_golden.safetensors"


def float_of_bits(code: int, exponent_bits: int, mantissa_bits: int, bias: int) -> Fraction:
    """IEEE-like value of a code, from the definition."""
    sign = code >> (exponent_bits + mantissa_bits)
    exponent = (code >> mantissa_bits) & ((1 << exponent_bits) - 1)
    fraction = Fraction(code & ((1 << mantissa_bits) - 1), 1 << mantissa_bits)
    power = max(exponent, 1) - bias
    magnitude = (fraction + (1 if exponent else 0)) * Fraction(2) ** power
    return -magnitude if sign else magnitude


def nearest_even(value: float, table: list[Fraction]) -> float:
    """The entry of `table` (ascending codes of one sign) nearest to |value|, ties to even codes."""
    target = abs(Fraction(value))
    best = min(range(len(table)), key=lambda code: (abs(table[code] - target), code % 2))
    return float(table[best]) * (-1 if value < 0 else 1)


E2M1 = [float_of_bits(code, 2, 1, 1) for code in range(8)]
E4M3 = [float_of_bits(code, 4, 3, 7) for code in range(127)]


def test_every_e2m1_code() -> None:
    values = element_values("mxfp4", None)
    assert [float(float_of_bits(code, 2, 1, 1)) for code in range(16)] == list(values)
    assert list(element_values("nvfp4", None)) == list(values)


def test_every_e4m3_code() -> None:
    values = element_values("fp8", None)
    for code in range(256):
        if code & 0x7F == 0x7F:
            assert np.isnan(values[code])
        else:
            assert values[code] == float(float_of_bits(code, 4, 3, 7))


@pytest.mark.parametrize(("format", "bits"), [("int2", 2), ("int3", 3), ("int4", 4), ("int8", 8)])
def test_every_integer_code(format: Any, bits: int) -> None:
    signed = [code - (1 << bits) if code >> (bits - 1) else code for code in range(1 << bits)]
    assert signed == list(element_values(format, "absmax"))
    assert [code + 0.5 for code in signed] == list(element_values(format, "gaussian-mse"))


def test_unpacking_takes_the_low_nibble_first() -> None:
    packed = np.arange(256, dtype=np.uint8).reshape(4, 64)
    codes = unpack_codes(packed, 4)
    assert codes.shape == (4, 128)
    assert np.array_equal(codes[:, 0::2] | (codes[:, 1::2] << 4), packed)
    assert np.array_equal(codes[0, :6], [0, 0, 1, 0, 2, 0])


def test_decode_mxfp4_against_the_definition() -> None:
    rng = np.random.default_rng(1)
    packed = rng.integers(0, 256, (5, 32), np.uint8)
    scales = rng.integers(100, 150, (5, 2), np.uint8)
    decoded = decode(Recipe("mxfp4", scale_rule="noclip"), packed, scales, 3.0)
    for row in range(5):
        for col in range(64):
            code = (int(packed[row, col // 2]) >> (4 * (col % 2))) & 15
            step = Fraction(2) ** (int(scales[row, col // 32]) - 127) / 3
            expected = float(float_of_bits(code, 2, 1, 1) * step)
            assert decoded[row, col] == pytest.approx(expected, rel=1e-15)


def test_decode_nvfp4_divides_by_the_global_scale() -> None:
    rng = np.random.default_rng(2)
    packed = rng.integers(0, 256, (3, 16), np.uint8)
    scales = rng.integers(1, 126, (3, 2), np.uint8)
    decoded = decode(Recipe("nvfp4"), packed, scales, 37.5)
    for row in range(3):
        for col in range(32):
            code = (int(packed[row, col // 2]) >> (4 * (col % 2))) & 15
            scale = float_of_bits(int(scales[row, col // 16]), 4, 3, 7) / Fraction(37.5)
            expected = float(float_of_bits(code, 2, 1, 1) * scale)
            assert decoded[row, col] == pytest.approx(expected, rel=1e-15)


@pytest.mark.parametrize(
    ("recipe", "scale_shape"),
    [
        (Recipe("int4", scale_rule="absmax", granularity="group", group_size=16), (4, 4)),
        (Recipe("int8", scale_rule="gaussian-mse", granularity="row"), (4, 1)),
    ],
)
def test_decode_integers(recipe: Recipe, scale_shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(3)
    bits = 4 if recipe.format == "int4" else 8
    packed = rng.integers(0, 256, (4, 64 * bits // 8), np.uint8)
    scales = to_bfloat16(rng.uniform(0.01, 1, scale_shape))
    decoded = decode(recipe, packed, scales, None)
    width = 64 // scale_shape[1]
    for row in range(4):
        for col in range(64):
            byte = int(packed[row, col * bits // 8])
            code = byte if bits == 8 else (byte >> (4 * (col % 2))) & 15
            signed = code - (1 << bits) if code >> (bits - 1) else code
            offset = 0.5 if recipe.scale_rule == "gaussian-mse" else 0.0
            scale = from_bfloat16(scales)[row, col // width]
            assert decoded[row, col] == (signed + offset) * float(scale)


def test_decode_fp8_blocks() -> None:
    rng = np.random.default_rng(4)
    packed = rng.integers(0, 127, (130, 200), np.uint8)
    scales = rng.uniform(0.1, 2, (2, 2)).astype(np.float32)
    decoded = decode(Recipe("fp8", granularity="block-128x128"), packed, scales, None)
    for row, col in ((0, 0), (127, 127), (128, 127), (0, 128), (129, 199)):
        value = float(float_of_bits(int(packed[row, col]), 4, 3, 7))
        assert decoded[row, col] == value * float(scales[row // 128, col // 128])


def test_decode_refuses_scales_of_another_shape() -> None:
    with pytest.raises(InvalidArgument, match="expected 2 x 2 scales"):
        decode(Recipe("mxfp4"), np.zeros((2, 32), np.uint8), np.zeros((2, 4), np.uint8), None)


def heavy_tailed(rows: int, cols: int, seed: int) -> NDArray[np.float64]:
    rng = np.random.default_rng(seed)
    return np.asarray(rng.standard_t(3, (rows, cols)) * 10 ** rng.uniform(-3, 3, (rows, 1)))


def test_fake_quantize_mxfp4_noclip() -> None:
    x = heavy_tailed(6, 64, 5)
    quantized = fake_quantize(x, Recipe("mxfp4", scale_rule="noclip"))
    for row in range(6):
        for start in (0, 32):
            group = x[row, start : start + 32]
            step = 2.0 ** np.floor(np.log2(np.abs(group).max())) / 3
            expected = [nearest_even(value / step, E2M1) * step for value in group]
            assert np.allclose(quantized[row, start : start + 32], expected, rtol=1e-14, atol=0)
            assert np.abs(group).max() / step <= 6  # nothing saturates


def test_fake_quantize_mxfp4_ocp_saturates_at_six() -> None:
    x = np.full((1, 32), 0.25)
    x[0, 0] = 7.9
    quantized = fake_quantize(x, Recipe("mxfp4", scale_rule="ocp"))
    assert quantized[0, 0] == 6.0
    assert quantized[0, 1] == 0.0  # 0.25 is a tie: to the even code


def test_fake_quantize_nvfp4_takes_scales_from_the_values() -> None:
    x = heavy_tailed(4, 48, 6)
    quantized = fake_quantize(x, Recipe("nvfp4", scale_rule="mse"))
    global_scale = float(np.float32(448 * 6 / np.abs(x).max()))
    for row in range(4):
        for start in (0, 16, 32):
            group = x[row, start : start + 16]
            stored = nearest_even(np.abs(group).max() * global_scale / 6, E4M3)
            scale = max(stored, 2.0**-9) / global_scale
            expected = [nearest_even(value / scale, E2M1) * scale for value in group]
            assert np.allclose(quantized[row, start : start + 16], expected, rtol=1e-14, atol=0)


@pytest.mark.parametrize("format", ["int4", "int8"])
@pytest.mark.parametrize("rule", ["absmax", "compressed-tensors", "gaussian-mse"])
def test_fake_quantize_integers(format: Any, rule: Any) -> None:
    x = heavy_tailed(5, 64, 7)
    recipe = Recipe(format, scale_rule=rule, granularity="group", group_size=32)
    quantized = fake_quantize(x, recipe)
    bits = 4 if format == "int4" else 8
    top = 2 ** (bits - 1)
    for row in range(5):
        for start in (0, 32):
            group = x[row, start : start + 32]
            scale = {
                "absmax": np.abs(group).max() / (top - 1),
                "compressed-tensors": np.abs(group).max() / (top - 0.5),
                "gaussian-mse": {4: 2.51393, 8: 3.88494}[bits]
                * 2
                / (2 * top - 1)
                * np.sqrt(np.mean(group**2)),
            }[rule]
            scale = float(from_bfloat16(to_bfloat16(np.array([scale])))[0])
            if rule == "gaussian-mse":
                codes = np.clip(np.floor(group / scale), -top, top - 1) + 0.5
            else:
                codes = np.clip([round(v) for v in group / scale], -top, top - 1)
            assert np.array_equal(quantized[row, start : start + 32], codes * scale)


def test_fake_quantize_fp8_by_row() -> None:
    x = heavy_tailed(4, 40, 8)
    quantized = fake_quantize(x, Recipe("fp8", granularity="row"))
    for row in range(4):
        scale = float(np.float32(np.abs(x[row]).max() / 448))
        expected = [nearest_even(value / scale, E4M3) * scale for value in x[row]]
        assert np.array_equal(quantized[row], expected)


@pytest.mark.parametrize("format", ["mxfp4", "nvfp4", "int2", "int3", "int4", "int8", "fp8"])
def test_fake_quantize_extremes_stay_finite(format: Any) -> None:
    x = np.zeros((4, 64))
    x[1] = 1e-44
    x[2] = np.linspace(-3e38, 3e38, 64)
    x[3, 5] = 1.0
    quantized = fake_quantize(x, Recipe(format))
    assert np.isfinite(quantized).all()
    assert not quantized[0].any()


@pytest.mark.parametrize("case", ["outlier_64x128", "gauss_48x64", "rect_40x256"])
@pytest.mark.parametrize("transform", ["identity", "hadamard", "wus", "wush"])
@pytest.mark.parametrize("method", ["rtn", "gptq"])
def test_golden_mxfp4_layers(case: str, transform: Any, method: Any) -> None:
    """Decoding, transforms and activation quantization together give the published errors."""
    with safe_open(GOLDEN, "numpy") as golden:
        key = f"{case}/mxfp4.{transform}.{method}"
        spec = json.loads(golden.metadata()["spec"])[case]["results"][f"mxfp4.{transform}.{method}"]
        weight = golden.get_tensor(f"{case}/weight").astype(np.float64)
        activations = golden.get_tensor(f"{case}/activations").astype(np.float64)
        moment = golden.get_tensor(f"{case}/second_moment").astype(np.float64)
        layer = QuantizedLayer(
            name="golden",
            recipe=Recipe("mxfp4", transform, method, scale_rule="noclip"),
            tensors={
                "weight_packed": golden.get_tensor(f"{key}.codes"),
                "weight_scale": golden.get_tensor(f"{key}.scales"),
                "weight_global_scale": np.array([3.0], np.float32),
                "weight_shape": np.array(weight.shape),
                "input_transform": golden.get_tensor(f"{key}.transform"),
            },
            report={},
            metadata={},
        )
    difference = layer.dequantize() - weight
    weight_only = np.sum((difference @ moment) * difference) / np.sum((weight @ moment) * weight)
    assert weight_only == pytest.approx(spec["rel_output_mse_weight_only"], rel=1e-4)
    exact = activations @ weight.T
    both = np.sum((layer(activations) - exact) ** 2) / np.sum(exact**2)
    assert both == pytest.approx(spec["rel_output_mse_weight_and_activation"], rel=1e-4)
    unquantized = layer(activations, quantize_activations=False)
    assert np.allclose(unquantized, activations @ layer.dequantize().T, rtol=1e-3, atol=1e-3)
