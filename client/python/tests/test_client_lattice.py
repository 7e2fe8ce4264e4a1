"""Entropy-coded weights against a slow decoder written from docs/formats.md alone.

The weights are the seeds of the decoder's fuzz target, which the service's encoder wrote: one for
every part of the grammar.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from quantd import QuantizedLayer, Recipe
from quantd.entropy_code import decode_integers
from quantd.errors import DataLoss, Error, InvalidArgument
from quantd.lattice import decode_lattice

SEEDS = sorted(
    (Path(__file__).parents[3] / "tests" / "fuzz" / "corpus" / "lattice_weight").iterdir()
)
#: Tensors of a seed in their order: name, dtype, and the length of a row where there are two axes.
LAYOUT = (
    ("z_stream", "<u1", 0),
    ("z_segment_offset", "<u4", 2),
    ("z_frequency", "<u2", 0),
    ("z_escape", "<i4", 0),
    ("row_scale", "<f2", 0),
    ("col_scale", "<f2", 0),
    ("weight_global_scale", "<f4", 0),
    ("dead_columns", "<u2", 0),
)

Tensors = dict[str, NDArray[Any]]


def read_seed(path: Path) -> tuple[Tensors, int, int]:
    """Rows, columns and sizes as u16, then the tensors (tests/fuzz/lattice_input.h)."""
    data = path.read_bytes()
    rows, cols, *sizes = (int(n) for n in np.frombuffer(data, "<u2", 2 + len(LAYOUT)))
    tensors: Tensors = {}
    at = 2 * (2 + len(LAYOUT))
    for (name, dtype, row), size in zip(LAYOUT, sizes, strict=True):
        tensor = np.frombuffer(data, dtype, size, at)
        at += tensor.nbytes
        tensors[name] = tensor.reshape(-1, row) if row else tensor
    assert at == len(data)
    return tensors, rows, cols


def slow_integers(tensors: Tensors) -> list[int]:
    """One value at a time, with Python's integers."""
    stream = tensors["z_stream"].tobytes()
    precision, classes = stream[4], stream[5]
    segment_values, cols = (int.from_bytes(stream[i : i + 4], "little") for i in (8, 12))
    count = int.from_bytes(stream[16:24], "little")
    splits = stream[32 : 32 + classes]
    begin = 32 + classes
    class_of = [0] * cols
    if classes > 1:
        class_of = [stream[begin + c // 2] >> (4 * (c % 2)) & 15 for c in range(cols)]
        begin += (cols + 1) // 2
    begin += begin % 2
    tables: list[list[int]] = [[]]
    for frequency in tensors["z_frequency"].tolist():
        if sum(tables[-1]) == 1 << precision:
            tables.append([])
        tables[-1].append(frequency)
    values: list[int] = []
    offsets = tensors["z_segment_offset"].tolist()
    escapes = tensors["z_escape"].tolist()
    for (place, _), (end, _) in itertools.pairwise(offsets):
        words = list(np.frombuffer(stream[begin + 2 * place : begin + 2 * end], "<u2").tolist())
        states = [words[2 * i] | words[2 * i + 1] << 16 for i in range(32)]
        del words[:64]

        def take(
            lane: int, state: int, states: list[int] = states, words: list[int] = words
        ) -> None:
            states[lane] = state if state >= 1 << 16 else state << 16 | words.pop(0)

        stop = min(len(values) + segment_values, count)
        while len(values) < stop:
            tokens = []
            for lane in range(min(32, stop - len(values))):
                table = tables[class_of[(len(values) + lane) % cols]]
                slot = states[lane] % (1 << precision)
                token = next(t for t in range(len(table)) if sum(table[: t + 1]) > slot)
                tokens.append(token)
                start = sum(table[:token])
                take(lane, table[token] * (states[lane] >> precision) + slot - start)
            for lane, token in enumerate(tokens):
                split = splits[class_of[len(values) % cols]]
                v = token - 1
                if v >= 1 << split:
                    exponent, quarter = divmod(v - (1 << split), 4)
                    bits = split + exponent - 2
                    v = (4 + quarter) << bits | states[lane] % (1 << bits)
                    if bits:
                        take(lane, states[lane] >> bits)
                values.append(escapes.pop(0) if token == 0 else (v >> 1) ^ -(v & 1))
        assert not words
        assert states == [1 << 16] * 32
    assert not escapes
    return values


def test_there_are_seeds() -> None:
    assert len(SEEDS) >= 10


@pytest.mark.parametrize("seed", SEEDS, ids=lambda path: path.name)
def test_integers_and_weights_are_those_of_the_definition(seed: Path) -> None:
    tensors, rows, cols = read_seed(seed)
    live = [c for c in range(cols) if c not in tensors["dead_columns"]]
    integers = decode_integers(tensors, rows, len(live))
    assert integers.ravel().tolist() == slow_integers(tensors)

    expected = np.zeros((rows, cols))
    scale = float(tensors["weight_global_scale"][0])
    for i, c in enumerate(live):
        for r in range(rows):
            row_scale, col_scale = float(tensors["row_scale"][r]), float(tensors["col_scale"][i])
            expected[r, c] = row_scale * (col_scale / scale) * int(integers[r, i])
    assert np.array_equal(decode_lattice(tensors, rows, cols), expected)


def test_a_layer_dequantizes_and_leaves_activations_alone() -> None:
    tensors, rows, cols = read_seed(SEEDS[[path.name for path in SEEDS].index("classes")])
    layer = QuantizedLayer(
        name="layer",
        recipe=Recipe(method="watersic", rate_bits=2.0),
        tensors={**tensors, "weight_shape": np.array([rows, cols])},
        report={},
        metadata={},
    )
    weight = layer.dequantize()
    assert weight.dtype == np.float32
    assert np.array_equal(weight, decode_lattice(tensors, rows, cols).astype(np.float32))
    x = np.random.default_rng(1).standard_normal((5, cols)).astype(np.float32)
    assert np.array_equal(layer(x), x @ weight.T)


def test_every_flipped_bit_of_the_stream_is_noticed_or_changes_nothing() -> None:
    seed = next(path for path in SEEDS if path.name == "segments")
    tensors, rows, cols = read_seed(seed)
    whole = decode_lattice(tensors, rows, cols)
    unnoticed = 0
    for byte in range(tensors["z_stream"].size):
        flipped = tensors["z_stream"].copy()
        flipped[byte] ^= 1 << byte % 8
        try:
            assert np.array_equal(
                decode_lattice({**tensors, "z_stream": flipped}, rows, cols), whole
            ), byte
            unnoticed += 1
        except (DataLoss, InvalidArgument):
            pass
    assert unnoticed < 20  # such as the split of a class of small numbers


@pytest.mark.parametrize("name", [name for name, _, _ in LAYOUT])
def test_tensors_that_are_missing_cut_or_of_another_dtype(name: str) -> None:
    seed = next(path for path in SEEDS if path.name == "segments")
    tensors, rows, cols = read_seed(seed)
    with pytest.raises(InvalidArgument, match=name):
        decode_lattice({k: v for k, v in tensors.items() if k != name}, rows, cols)
    with pytest.raises(InvalidArgument, match=name):
        decode_lattice({**tensors, name: tensors[name].astype(np.float64)}, rows, cols)
    with pytest.raises(Error):
        decode_lattice({**tensors, name: tensors[name][:-1]}, rows, cols)


def test_another_shape_than_that_of_the_tensors() -> None:
    tensors, rows, cols = read_seed(SEEDS[0])
    for shape in ((rows + 1, cols), (rows, cols + 1), (1 << 20, 1 << 20)):
        with pytest.raises(Error):
            decode_lattice(tensors, *shape)
