"""quantctl against a running server: the documented commands, and files that mean harm."""

from __future__ import annotations

import json
import re
import resource
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from quantd.v1 import jobs_pb2
from safetensors.numpy import load_file, save_file

from .server_process import Server, bin_dir, seconds
from .wire import activations_like, create_job, gaussian, get_job, layer, read_safetensors, works

Tool = Callable[..., subprocess.CompletedProcess[str]]
ROWS, COLS, TOKENS = 48, 128, 300
WEIGHT = gaussian(ROWS, COLS, 71).astype(np.float32)
ACTIVATIONS = activations_like(TOKENS, COLS, 72).astype(np.float32)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("inputs")
    contents = {
        "weights": {"weight": WEIGHT},
        "activations": {"activations": ACTIVATIONS},
        "second_moment": {"second_moment": ACTIVATIONS.T @ ACTIVATIONS / TOKENS},
        "model": {
            "model.layers.0.q_proj.weight": WEIGHT,
            "model.layers.0.norm": np.ones(COLS, np.float32),
        },
    }
    paths = {}
    for name, tensors in contents.items():
        paths[name] = folder / f"{name}.safetensors"
        save_file(tensors, paths[name])
    return paths


def _quantize(quantctl: Tool, server: Server, out: Path, *arguments: object, **more: Any):
    return quantctl("--server", server.address, "quantize", *arguments, "--out", out, **more)


@pytest.mark.parametrize("fmt", ["mxfp4", "nvfp4", "int2", "int3", "int4", "int8", "fp8"])
@pytest.mark.parametrize("transform", ["identity", "hadamard", "random", "wus", "wush"])
def test_quantize_and_dequantize(
    server: Server,
    quantctl: Tool,
    files: dict[str, Path],
    tmp_path: Path,
    fmt: str,
    transform: str,
) -> None:
    """The result, read back by quantctl, has the error that the report says."""
    out = tmp_path / "result"
    _quantize(
        quantctl,
        server,
        out,
        "--weights",
        files["weights"],
        "--activations",
        files["activations"],
        "--format",
        fmt,
        "--transform",
        transform,
        "--method",
        "rtn",
        check=True,
    )
    report = json.loads((out / "report.json").read_text())
    for name in (
        "relative_output_error_weight_only",
        "relative_output_error_weight_and_activation",
        "sqnr_db_weight_only",
        "sqnr_db_weight_and_activation",
        "bits_per_weight",
    ):
        assert np.isfinite(report[name]), name
    assert report["tokens"] == TOKENS
    assert report["outcome"] in ("EXACT", "DAMPED")
    assert any(name.startswith("baseline_") for name in report)

    quantctl(
        "dequantize",
        "--in",
        out / "result.safetensors",
        "--out",
        out / "dequantized.safetensors",
        check=True,
    )
    decoded = load_file(out / "dequantized.safetensors")["weight"].astype(np.float64)
    assert decoded.shape == (ROWS, COLS)
    x = ACTIVATIONS.astype(np.float64)
    error = ((x @ (decoded - WEIGHT).T) ** 2).sum() / ((x @ WEIGHT.T.astype(float)) ** 2).sum()
    assert report["relative_output_error_weight_only"] == pytest.approx(error, rel=1e-3)
    tensors = read_safetensors((out / "result.safetensors").read_bytes())
    assert {"weight_packed", "weight_scale", "weight_shape"} <= set(tensors)


def test_second_moment_instead_of_activations(
    server: Server, quantctl: Tool, files: dict[str, Path], tmp_path: Path
) -> None:
    _quantize(
        quantctl,
        server,
        tmp_path,
        *("--weights", files["weights"], "--second_moment", files["second_moment"]),
        *("--format", "mxfp4", "--transform", "wush", "--method", "rtn"),
        check=True,
    )
    report = json.loads((tmp_path / "report.json").read_text())
    assert 0 < report["relative_output_error_weight_only"] < 0.1
    assert report["relative_output_error_weight_and_activation"] is None


def test_gptq_is_below_round_to_nearest(
    server: Server, quantctl: Tool, files: dict[str, Path], tmp_path: Path
) -> None:
    errors = {}
    for method, options in {"rtn": (), "gptq": ("--order", "descending", "--act_order")}.items():
        _quantize(
            quantctl,
            server,
            tmp_path / method,
            *("--weights", files["weights"], "--activations", files["activations"]),
            *("--format", "mxfp4", "--transform", "wush", "--method", method, *options),
            check=True,
        )
        report = json.loads((tmp_path / method / "report.json").read_text())
        errors[method] = report["relative_output_error_weight_and_activation"]
        assert report["outcome"] == "EXACT"
    assert errors["gptq"] < errors["rtn"]


def test_options(server: Server, quantctl: Tool, files: dict[str, Path], tmp_path: Path) -> None:
    _quantize(
        quantctl,
        server,
        tmp_path,
        *("--weights", files["model"], "--tensor", "model.layers.0.q_proj.weight"),
        *("--activations", files["activations"], "--format", "int4", "--transform", "wush"),
        *("--method", "rtn", "--solver", "conditional", "--scale_rule", "gaussian-mse"),
        *("--group_size", "64"),
        check=True,
    )
    tensors = read_safetensors((tmp_path / "result.safetensors").read_bytes())
    assert tensors["weight_scale"].shape == (ROWS, COLS // 64)
    assert tensors["input_transform"].shape == (COLS // 64, 64, 64)


def test_info(server: Server, quantctl: Tool) -> None:
    text = quantctl("--server", server.address, "info", check=True).stdout.lower()
    for word in ("mxfp4", "nvfp4", "wush", "rtn", "cpu"):
        assert word in text


def test_jobs_report_and_cancel(server: Server, quantctl: Tool) -> None:
    job = create_job(server.api, [layer("w", ROWS, COLS)], job_id="by-hand")
    assert "by-hand" in quantctl("--server", server.address, "jobs", check=True).stdout
    for name in ("by-hand", job.name):  # short and full
        quantctl("--server", server.address, "cancel", name, check=True)
    assert get_job(server.api, job.name).state == jobs_pb2.CANCELLED
    watched = quantctl("--server", server.address, "watch", "by-hand")
    assert "cancelled" in (watched.stdout + watched.stderr).lower()


def test_statistics_and_report(
    server: Server, quantctl: Tool, files: dict[str, Path], tmp_path: Path
) -> None:
    _quantize(
        quantctl,
        server,
        tmp_path,
        *("--weights", files["weights"], "--activations", files["activations"]),
        *("--format", "nvfp4", "--transform", "wush", "--method", "rtn"),
        check=True,
    )
    jobs = server.api.jobs.ListJobs(jobs_pb2.ListJobsRequest(parent="tenants/default")).jobs
    done = [job for job in jobs if job.state == jobs_pb2.SUCCEEDED]
    assert done, "quantize leaves its job, so that the report can be read again"
    shown = quantctl("--server", server.address, "report", done[0].name, "--json", check=True)
    assert json.loads((tmp_path / "report.json").read_text()).items() <= _flatten(
        json.loads(shown.stdout)
    )
    text = quantctl("--server", server.address, "report", done[0].name, check=True).stdout
    assert "relative output error" in text
    quantctl("--server", server.address, "statistics", check=True)


def _flatten(value: Any) -> Any:
    """The report itself, wherever --json puts it."""

    class Anywhere:
        def __init__(self, found: list[dict[str, Any]]):
            self.found = found

        def __ge__(self, items: Any) -> bool:
            return any(dict(items) == report for report in self.found)

    found: list[dict[str, Any]] = []

    def search(node: Any) -> None:
        if isinstance(node, dict):
            if "relative_output_error_weight_only" in node:
                found.append(node)
            for child in node.values():
                search(child)
        elif isinstance(node, list):
            for child in node:
                search(child)

    search(value)
    return Anywhere(found)


# What is refused --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--format", "mxfp5"], ["mxfp5", "mxfp4"]),
        (["--transform", "fourier"], ["fourier", "wush"]),
        (["--method", "magic"], ["magic", "rtn"]),
        (["--format", "int4", "--group_size", "5"], ["group_size", "5"]),
        (["--format", "int4", "--group_size", "96"], ["96", "128"]),
        (["--tensor", "no_such_tensor"], ["no_such_tensor", "weight"]),
        (["--weights", "/no/such/file"], ["/no/such/file"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else str(value),
)
def test_refused_arguments(
    server: Server,
    quantctl: Tool,
    files: dict[str, Path],
    tmp_path: Path,
    arguments: list[str],
    says: list[str],
) -> None:
    given = {
        "--weights": str(files["weights"]),
        "--activations": str(files["activations"]),
        "--format": "mxfp4",
        "--transform": "identity",
        "--method": "rtn",
    }
    given.update(zip(arguments[::2], arguments[1::2], strict=True))
    flat = [word for pair in given.items() for word in pair]
    failed = _quantize(quantctl, server, tmp_path / "out", *flat)
    assert failed.returncode > 0
    for word in says:
        assert word in failed.stderr, failed.stderr
    assert not (tmp_path / "out" / "result.safetensors").exists()
    works(server.api)


@pytest.mark.parametrize(
    ("weight", "activations", "says"),
    [
        (WEIGHT, ACTIVATIONS[:, :64], ["64", "128"]),
        (WEIGHT[:, :40], ACTIVATIONS[:, :40], ["40", "32"]),
        (WEIGHT[0], ACTIVATIONS, ["128"]),
        (WEIGHT.astype(np.int32), ACTIVATIONS, ["I32"]),
        (np.where(WEIGHT[3, 5] == WEIGHT, np.nan, WEIGHT), ACTIVATIONS, ["row 3", "column 5"]),
        (
            WEIGHT,
            np.where(ACTIVATIONS[7, 9] == ACTIVATIONS, np.inf, ACTIVATIONS),
            ["row 7", "column 9"],
        ),
        (WEIGHT, ACTIVATIONS[:0], ["0"]),
    ],
    ids=["cols differ", "cols do not fit", "rank 1", "integers", "nan", "inf", "no tokens"],
)
def test_refused_tensors(
    server: Server,
    quantctl: Tool,
    tmp_path: Path,
    weight: np.ndarray,
    activations: np.ndarray,
    says: list[str],
) -> None:
    save_file({"weight": np.ascontiguousarray(weight)}, tmp_path / "w.safetensors")
    save_file({"activations": np.ascontiguousarray(activations)}, tmp_path / "x.safetensors")
    failed = _quantize(
        quantctl,
        server,
        tmp_path / "out",
        *("--weights", tmp_path / "w.safetensors"),
        *("--activations", tmp_path / "x.safetensors"),
        *("--format", "mxfp4", "--transform", "wush", "--method", "rtn"),
    )
    assert failed.returncode > 0
    for word in says:
        assert word in failed.stderr, failed.stderr
    assert not (tmp_path / "out" / "result.safetensors").exists()
    unfinished = [
        job.name
        for job in server.api.jobs.ListJobs(jobs_pb2.ListJobsRequest(parent="tenants/default")).jobs
        if job.state in (jobs_pb2.ACCEPTING, jobs_pb2.QUEUED, jobs_pb2.RUNNING)
    ]
    assert unfinished == []
    works(server.api)


def test_no_server(quantctl: Tool, files: dict[str, Path], tmp_path: Path) -> None:
    """Says which address did not answer, within seconds."""
    failed = quantctl("--server", "127.0.0.1:1", "info", within=60)
    assert failed.returncode > 0
    assert "127.0.0.1:1" in failed.stderr


def test_output_that_cannot_be_written(
    server: Server, quantctl: Tool, files: dict[str, Path], tmp_path: Path
) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    failed = _quantize(
        quantctl,
        server,
        blocked / "out",
        *("--weights", files["weights"], "--activations", files["activations"]),
        *("--format", "mxfp4", "--transform", "identity", "--method", "rtn"),
    )
    assert failed.returncode > 0
    assert str(blocked) in failed.stderr


# Hostile files ----------------------------------------------------------------------------------


def _file(header: bytes | str | dict, data: bytes = b"", length: int | None = None) -> bytes:
    if isinstance(header, dict):
        header = json.dumps(header)
    if isinstance(header, str):
        header = header.encode()
    return struct.pack("<Q", len(header) if length is None else length) + header + data


def _entry(**changes: Any) -> dict[str, Any]:
    return {"dtype": "F32", "shape": [2, 32], "data_offsets": [0, 256], **changes}


HOSTILE: dict[str, bytes] = {
    "empty file": b"",
    "seven bytes": b"\x00" * 7,
    "no header": struct.pack("<Q", 0),
    "header beyond the file": struct.pack("<Q", 1000) + b"{}",
    "header of 2^63": struct.pack("<Q", 2**63) + b"{}",
    "header of 2^64 - 1": b"\xff" * 8 + b"{}",
    "header of 200 MB": struct.pack("<Q", 200 << 20) + b"{}",
    "no json": _file("certainly not json"),
    "json of another kind": _file("[1, 2, 3]"),
    "half a json": _file('{"weight": {"dtype": "F32"'),
    "not utf-8": _file(b'{"\xff\xfe": 1}'),
    "deeply nested": _file('{"weight":' + "[" * 200_000 + "]" * 200_000 + "}"),
    "entry is a number": _file({"weight": 5}),
    "no shape": _file({"weight": {"dtype": "F32", "data_offsets": [0, 4]}}, bytes(4)),
    "no dtype": _file({"weight": {"shape": [1], "data_offsets": [0, 4]}}, bytes(4)),
    "no offsets": _file({"weight": {"dtype": "F32", "shape": [1]}}, bytes(4)),
    "unknown dtype": _file({"weight": _entry(dtype="F31")}, bytes(256)),
    "dtype is a number": _file({"weight": _entry(dtype=32)}, bytes(256)),
    "negative dimension": _file({"weight": _entry(shape=[-2, -32])}, bytes(256)),
    "fractional dimension": _file({"weight": _entry(shape=[2.5, 32])}, bytes(256)),
    "dimensions that overflow": _file({"weight": _entry(shape=[2**32, 2**32])}, bytes(256)),
    "dimensions that overflow to fit": _file(
        {"weight": _entry(shape=[2**62, 4], data_offsets=[0, 0])}
    ),
    "dimension beyond 64 bits": _file({"weight": _entry(shape=[10**30, 1])}, bytes(256)),
    "many dimensions": _file({"weight": _entry(shape=[1] * 100_000)}, bytes(256)),
    "shape is no list": _file({"weight": _entry(shape="2x32")}, bytes(256)),
    "offsets beyond the file": _file({"weight": _entry(data_offsets=[0, 10**12])}, bytes(256)),
    "offsets backwards": _file({"weight": _entry(data_offsets=[256, 0])}, bytes(256)),
    "negative offsets": _file({"weight": _entry(data_offsets=[-256, 0])}, bytes(256)),
    "three offsets": _file({"weight": _entry(data_offsets=[0, 128, 256])}, bytes(256)),
    "size contradicts shape": _file({"weight": _entry(data_offsets=[0, 252])}, bytes(252)),
    "truncated data": _file({"weight": _entry()}, bytes(255)),
    "hole before": _file({"weight": _entry(data_offsets=[8, 264])}, bytes(264)),
    "bytes behind": _file({"weight": _entry()}, bytes(300)),
    "overlap": _file({"weight": _entry(), "other": _entry(data_offsets=[128, 384])}, bytes(384)),
    "twice the same name": _file(
        '{"weight":{"dtype":"F32","shape":[2,32],"data_offsets":[0,256]},'
        '"weight":{"dtype":"F32","shape":[2,32],"data_offsets":[256,512]}}',
        bytes(512),
    ),
    "metadata is a number": _file({"__metadata__": 5, "weight": _entry()}, bytes(256)),
    "metadata holds a list": _file({"__metadata__": {"a": [1]}, "weight": _entry()}, bytes(256)),
}


@pytest.mark.parametrize("role", ["weights", "activations", "dequantize"])
def test_hostile_safetensors(
    server: Server, files: dict[str, Path], tmp_path: Path, role: str
) -> None:
    """Each is refused with an error that names the file; nothing crashes, hangs, or takes memory
    that the file does not hold."""
    binary = str(bin_dir() / "client" / "cli" / "quantctl")
    for what, content in HOSTILE.items():
        path = tmp_path / "hostile.safetensors"
        path.write_bytes(content)
        if role == "dequantize":
            command = [binary, "dequantize", "--in", str(path), "--out", str(tmp_path / "o")]
        else:
            inputs = {
                "weights": str(files["weights"]),
                "activations": str(files["activations"]),
                role: str(path),
            }
            command = [binary, "--server", server.address, "quantize"]
            command += ["--weights", inputs["weights"], "--activations", inputs["activations"]]
            command += ["--format", "mxfp4", "--transform", "wush", "--method", "rtn"]
            command += ["--out", str(tmp_path / "out")]
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=seconds(20),
        )
        assert done.returncode > 0, f"{what}: ended with {done.returncode}: {done.stderr}"
        assert "hostile.safetensors" in done.stderr, f"{what}: {done.stderr}"
        assert len(done.stderr) < 5000, what
        assert not re.search(r"[\x00-\x08\x0b-\x1f]", done.stderr.replace("\x1b[K", "")), what
        assert not (tmp_path / "out" / "result.safetensors").exists(), what
    children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    assert children < (4 << 30)
    works(server.api)


def test_name_with_control_characters(
    server: Server, quantctl: Tool, files: dict[str, Path], tmp_path: Path
) -> None:
    """A tensor's name is shown to a person: no escape sequence of it reaches the terminal."""
    path = tmp_path / "escape.safetensors"
    path.write_bytes(
        _file({"\x1b[2J\x07evil": _entry(), "other": _entry(data_offsets=[256, 512])}, bytes(512))
    )
    failed = _quantize(
        quantctl,
        server,
        tmp_path / "out",
        *("--weights", path, "--activations", files["activations"]),
        *("--format", "mxfp4", "--transform", "identity", "--method", "rtn"),
    )
    assert failed.returncode > 0
    assert "\x1b[2J" not in failed.stderr
    assert "\x07" not in failed.stderr
