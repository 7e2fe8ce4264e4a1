"""HIGGS's weights against the definition, and the grids against what they are optimal for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from quantd import QuantizedLayer, Recipe
from quantd.errors import InvalidArgument
from quantd.gaussian_grid import GRIDS
from quantd.grid import column_signs, decode_grid, hadamard

ROWS, COLS, GROUP = 3, 128, 64


def sylvester(size: int) -> NDArray[np.float64]:
    matrix: NDArray[Any] = np.ones((1, 1))
    while len(matrix) < size:
        matrix = np.kron([[1, 1], [1, -1]], matrix)
    return matrix


def some_layer(bits: int, dimension: int) -> tuple[Recipe, dict[str, NDArray[Any]]]:
    rng = np.random.default_rng(bits * dimension)
    recipe = Recipe(
        method="higgs", rate_bits=bits, grid_dimension=dimension, group_size=GROUP, seed=2**64 - 5
    )
    tensors = {
        "weight_packed": rng.integers(0, 256, (ROWS, COLS * bits // 8), np.uint8),
        "weight_scale": rng.uniform(1, 2, (ROWS, COLS // GROUP)).astype(np.float16),
        "weight_global_scale": np.array([64], np.float32),
        "weight_shape": np.array([ROWS, COLS]),
    }
    return recipe, tensors


@pytest.mark.parametrize(("bits", "dimension"), sorted(GRIDS))
def test_decoding_is_the_definition(bits: int, dimension: int) -> None:
    recipe, tensors = some_layer(bits, dimension)
    expected = np.zeros((ROWS, COLS))
    grid = GRIDS[bits, dimension]
    width = bits * dimension
    for r in range(ROWS):
        packed = int.from_bytes(tensors["weight_packed"][r].tobytes(), "little")
        coordinates: list[float] = []
        for i in range(COLS // dimension):
            code = packed >> (i * width) & ((1 << width) - 1)
            coordinates += grid[dimension * code : dimension * (code + 1)]
        for g in range(COLS // GROUP):
            columns = slice(g * GROUP, (g + 1) * GROUP)
            values = sylvester(GROUP) / np.sqrt(GROUP) @ coordinates[columns]
            expected[r, columns] = values * float(tensors["weight_scale"][r, g]) / 64
    signs = [-1.0 if slow_sign(recipe.seed, c) else 1.0 for c in range(COLS)]
    decoded = decode_grid(recipe, tensors, ROWS, COLS)
    assert np.allclose(decoded, expected * signs, rtol=1e-6, atol=1e-9)

    layer = QuantizedLayer("layer", recipe, tensors, {}, {})
    assert np.array_equal(layer.dequantize(), decoded.astype(np.float32))
    x = np.ones((2, COLS), np.float32)
    assert np.array_equal(layer.fake_quantize_activations(x), x)


def slow_sign(seed: int, column: int) -> bool:
    modulus = 1 << 64
    z = (seed + (column + 1) * 0x9E3779B97F4A7C15) % modulus
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % modulus
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % modulus
    return bool((z ^ (z >> 31)) >> 63)


def test_signs_are_those_of_splitmix64() -> None:
    for seed in (0, 7, 2**64 - 1):
        assert [slow_sign(seed, c) for c in range(50)] == list(column_signs(seed, 50) < 0)


def test_hadamard_is_sylvesters() -> None:
    values = np.random.default_rng(1).standard_normal((4, 32))
    assert np.allclose(hadamard(values), values @ sylvester(32).T)


@pytest.mark.parametrize(("bits", "dimension"), sorted(GRIDS))
def test_grids_meet_their_error(bits: int, dimension: int) -> None:
    errors = {(2, 1): 0.1175, (3, 1): 0.03454, (4, 1): 0.009497}
    errors |= {(2, 2): 0.107596, (3, 2): 0.029770, (4, 2): 0.007808}
    points = np.array(GRIDS[bits, dimension]).reshape(-1, dimension)
    assert len(points) == 1 << (bits * dimension)
    x = np.random.default_rng(3).standard_normal((40_000, dimension))
    nearest = np.argmin((points**2).sum(1) - 2 * x @ points.T, axis=1)
    assert np.mean((x - points[nearest]) ** 2) == pytest.approx(errors[bits, dimension], rel=0.02)


@pytest.mark.parametrize("name", ["weight_packed", "weight_scale", "weight_global_scale"])
def test_tensors_that_do_not_fit(name: str) -> None:
    recipe, tensors = some_layer(3, 2)
    for wrong in (tensors[name][:-1], tensors[name].astype(np.float64)):
        with pytest.raises(InvalidArgument, match=name):
            decode_grid(recipe, {**tensors, name: wrong}, ROWS, COLS)
    with pytest.raises(InvalidArgument, match="columns"):
        decode_grid(recipe, tensors, ROWS, COLS + 1)
    with pytest.raises(InvalidArgument, match="scale"):
        broken = {**tensors, "weight_scale": -tensors["weight_scale"]}
        decode_grid(recipe, broken, ROWS, COLS)
