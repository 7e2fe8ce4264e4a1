"""Weights that are no codes and scales: quantctl and the Python package decode the same bits."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import quantd
from safetensors.numpy import load_file, save_file

from .server_process import Server
from .wire import activations_like, gaussian

Tool = Callable[..., subprocess.CompletedProcess[str]]
ROWS, COLS = 48, 512
WEIGHT = gaussian(ROWS, COLS, 81).astype(np.float32)
#: Seeds of the decoder's fuzz target: rows, columns and sizes as u16, then these tensors.
LATTICES = sorted((Path(__file__).parents[1] / "fuzz" / "corpus" / "lattice_weight").iterdir())
LAYOUT = {
    "z_stream": "<u1",
    "z_segment_offset": "<u4",
    "z_frequency": "<u2",
    "z_escape": "<i4",
    "row_scale": "<f2",
    "col_scale": "<f2",
    "weight_global_scale": "<f4",
    "dead_columns": "<u2",
}
LATTICE_RECIPE = {"method": "watersic", "format": "entropy-coded", "rate_bits": 2.0}


def _dequantized(quantctl: Tool, result: Path) -> np.ndarray:
    out = result.with_name("dequantized.safetensors")
    quantctl("dequantize", "--in", result, "--out", out, check=True)
    return load_file(out)["weight"]


def _lattice_file(seed: Path, path: Path) -> None:
    data = seed.read_bytes()
    rows, cols, *sizes = (int(n) for n in np.frombuffer(data, "<u2", 2 + len(LAYOUT)))
    tensors = {"weight_shape": np.array([rows, cols])}
    at = 2 * (2 + len(LAYOUT))
    for (name, dtype), size in zip(LAYOUT.items(), sizes, strict=True):
        tensors[name] = np.frombuffer(data, dtype, size, at).copy()
        at += tensors[name].nbytes
    tensors["z_segment_offset"] = tensors["z_segment_offset"].reshape(-1, 2)
    save_file(tensors, path, {"recipe": json.dumps(LATTICE_RECIPE)})


@pytest.mark.parametrize("seed", LATTICES, ids=lambda path: path.name)
def test_lattices(quantctl: Tool, tmp_path: Path, seed: Path) -> None:
    result = tmp_path / "result.safetensors"
    _lattice_file(seed, result)
    decoded = quantd.load(result).dequantize()
    assert np.array_equal(_dequantized(quantctl, result), decoded)


def test_a_damaged_lattice_is_refused(quantctl: Tool, tmp_path: Path) -> None:
    result = tmp_path / "result.safetensors"
    _lattice_file(next(path for path in LATTICES if path.name == "classes"), result)
    data = bytearray(result.read_bytes())
    data[-200] ^= 1  # somewhere in the stream, which comes last
    result.write_bytes(data)
    refused = quantctl("dequantize", "--in", result, "--out", tmp_path / "out.safetensors")
    assert refused.returncode == 1
    assert "z_stream" in refused.stderr


def test_watersic(server: Server, quantctl: Tool, tmp_path: Path) -> None:
    weights, activations = tmp_path / "weights.safetensors", tmp_path / "activations.safetensors"
    save_file({"weight": WEIGHT}, weights)
    save_file({"activations": activations_like(700, COLS, 82).astype(np.float32)}, activations)
    quantctl(
        *("--server", server.address, "quantize", "--method", "watersic", "--rate", 2.5),
        *("--weights", weights, "--activations", activations, "--out", tmp_path / "out"),
        check=True,
    )
    result = tmp_path / "out" / "result.safetensors"
    layer = quantd.load(result)
    assert layer.bits_per_weight == pytest.approx(2.5, abs=0.01)
    assert np.array_equal(_dequantized(quantctl, result), layer.dequantize())


@pytest.mark.parametrize("dimension", [1, 2])
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_higgs(server: Server, quantctl: Tool, tmp_path: Path, bits: int, dimension: int) -> None:
    weights = tmp_path / "weights.safetensors"
    save_file({"weight": WEIGHT}, weights)
    quantctl(
        *("--server", server.address, "quantize", "--weights", weights, "--method", "higgs"),
        *("--rate", bits, "--grid_dimension", dimension, "--seed", 9, "--out", tmp_path / "out"),
        check=True,
    )
    result = tmp_path / "out" / "result.safetensors"
    layer = quantd.load(result)
    assert layer.bits_per_weight == pytest.approx(bits + 16 / 256, abs=0.002)
    decoded = layer.dequantize()
    assert np.array_equal(_dequantized(quantctl, result), decoded)
    error = ((decoded - WEIGHT) ** 2).sum() / (WEIGHT**2).sum()
    expected = {(2, 1): 0.1175, (3, 1): 0.0345, (4, 1): 0.0095}
    expected |= {(2, 2): 0.1076, (3, 2): 0.0298, (4, 2): 0.0078}
    assert error == pytest.approx(expected[bits, dimension], rel=0.08)
