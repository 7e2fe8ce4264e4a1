"""quantctl as people and scripts use it: reuse, clean-up, interrupts, JSON, exit codes, tokens."""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import signal
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import grpc
import numpy as np
import pytest
from quantd.v1 import calibration_pb2, jobs_pb2
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from .server_process import Server, bin_dir, eventually, seconds
from .wire import (
    F32,
    activations_like,
    create_job,
    delete_job,
    gaussian,
    get_job,
    get_statistic,
    import_requests,
    layer,
    limits,
    seal,
    stream_activations,
    upload_status,
)

Tool = Callable[..., subprocess.CompletedProcess[str]]
ROWS, COLS, TOKENS = 32, 64, 200
WEIGHT = gaussian(ROWS, COLS, 81).astype(np.float32)
ACTIVATIONS = activations_like(TOKENS, COLS, 82).astype(np.float32)


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    save_file({"weight": WEIGHT}, tmp_path / "w.safetensors")
    return tmp_path / "w.safetensors"


@pytest.fixture
def activations(tmp_path: Path) -> Path:
    save_file({"activations": ACTIVATIONS}, tmp_path / "x.safetensors")
    return tmp_path / "x.safetensors"


def test_a_kept_statistic_serves_other_recipes(
    server: Server, quantctl: Tool, weights: Path, activations: Path, tmp_path: Path, unique: str
) -> None:
    """Calibrating on the name of an earlier stream gives the same result as streaming anew."""
    at = ("--server", server.address, "quantize", "--weights", weights, "--format", "mxfp4")
    quantctl(
        *at,
        *("--activations", activations, "--statistic", unique, "--transform", "wush"),
        *("--out", tmp_path / "a"),
        check=True,
    )
    assert get_statistic(server.api, server.api.statistic_name(unique)).tokens == TOKENS
    quantctl(
        *at,
        *("--statistic", unique, "--transform", "wush", "--out", tmp_path / "b"),
        check=True,
    )
    first, second = (load_file(tmp_path / run / "result.safetensors") for run in "ab")
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert np.array_equal(tensor, second[name]), name
    listed = quantctl("--server", server.address, "statistics", "--json", check=True).stdout
    mine = [json.loads(line) for line in listed.splitlines() if unique in line]
    assert [(each["state"], each["cols"], each["tokens"]) for each in mine] == [
        ("sealed", COLS, TOKENS)
    ]


def test_weighted_tokens(
    server: Server, quantctl: Tool, weights: Path, activations: Path, tmp_path: Path, unique: str
) -> None:
    """Tokens of weight 0 are as if they were not there."""
    p = np.where(np.arange(TOKENS) < TOKENS // 2, 1.0, 0.0).astype(np.float32)
    save_file({"token_weights": p}, tmp_path / "p.safetensors")
    save_file({"activations": ACTIVATIONS[: TOKENS // 2]}, tmp_path / "half.safetensors")
    at = ("--server", server.address, "quantize", "--weights", weights, "--format", "mxfp4")
    at = (*at, "--transform", "wush", "--damping", "0.01", "--sample_rows", "0")
    quantctl(
        *at,
        *("--activations", activations, "--token_weights", tmp_path / "p.safetensors"),
        *("--statistic", unique, "--out", tmp_path / "a"),
        check=True,
    )
    statistic = get_statistic(server.api, server.api.statistic_name(unique))
    assert statistic.kind == calibration_pb2.WEIGHTED
    quantctl(
        *at, *("--activations", tmp_path / "half.safetensors", "--out", tmp_path / "b"), check=True
    )
    first, second = (load_file(tmp_path / run / "result.safetensors") for run in "ab")
    for name, tensor in first.items():
        assert np.array_equal(tensor, second[name]), name

    save_file({"token_weights": p[:-1]}, tmp_path / "short.safetensors")
    refused = quantctl(
        *at,
        *("--activations", activations, "--token_weights", tmp_path / "short.safetensors"),
        *("--out", tmp_path / "c"),
    )
    assert refused.returncode == 1
    assert f"expected {TOKENS} weights" in refused.stderr


def test_moments_of_drift_from_files_and_from_the_server(
    server: Server, quantctl: Tool, weights: Path, tmp_path: Path, unique: str
) -> None:
    xhat = ACTIVATIONS + 0.1 * activations_like(TOKENS, COLS, 83).astype(np.float32)
    residual = gaussian(TOKENS, ROWS, 84).astype(np.float32)
    moments = {
        "second_moment": ACTIVATIONS.T @ ACTIVATIONS / TOKENS,
        "second_moment_hat": xhat.T @ xhat / TOKENS,
        "cross_moment": ACTIVATIONS.T @ xhat / TOKENS,
        "residual_moment": residual.T @ xhat / TOKENS,
    }
    files: list[str | Path] = []
    for name, matrix in moments.items():
        save_file({name: matrix}, tmp_path / f"{name}.safetensors")
        files += [f"--{name}", tmp_path / f"{name}.safetensors"]
    at = ("--server", server.address, "--json", "quantize", "--weights", weights)
    at = (*at, "--method", "watersic", "--rate_bits", "3")
    before = quantctl("--server", server.address, "statistics", "--json", check=True).stdout
    done = quantctl(*at, *files, "--delete", "--out", tmp_path / "a", check=True)
    assert json.loads(done.stdout)["report"]["relative_drift_error"] > 0
    after = quantctl("--server", server.address, "statistics", "--json", check=True).stdout
    assert after == before  # those of the run are gone

    # The same moments under names of the server.
    given: list[str | Path] = ["--second_moment", tmp_path / "second_moment.safetensors"]
    for name, matrix in list(moments.items())[1:]:
        kind = {"second_moment_hat": 1, "cross_moment": 3, "residual_moment": 4}[name]
        header = calibration_pb2.StatisticHeader(
            statistic=server.api.statistic_name(f"{unique}-{name}"),
            cols=COLS,
            dtype=F32,
            tokens=1,
            normalization=calibration_pb2.MEAN,
            kind=kind,
            paired_cols=0 if kind == 1 else matrix.shape[0],
        )
        server.api.calibration.ImportStatistic(import_requests(header, matrix.tobytes()))
        given += [f"--{name}", f"{unique}-{name}"]
    quantctl(*at, *given, "--out", tmp_path / "b", check=True)
    first, second = (load_file(tmp_path / run / "result.safetensors") for run in "ab")
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert np.array_equal(tensor, second[name]), name


def test_moments_of_drift_are_checked_before_anything_is_sent(
    server: Server, quantctl: Tool, weights: Path, activations: Path, tmp_path: Path
) -> None:
    square = np.eye(COLS, dtype=np.float32)
    save_file({"second_moment_hat": square}, tmp_path / "hat.safetensors")
    save_file({"cross_moment": square[:-1]}, tmp_path / "cross.safetensors")
    save_file({"residual_moment": square}, tmp_path / "residual.safetensors")
    at = ("--server", server.address, "quantize", "--weights", weights)
    at = (*at, "--activations", activations, "--out", tmp_path / "out")
    at = (*at, "--method", "watersic", "--rate_bits", "3")
    hat = ("--second_moment_hat", tmp_path / "hat.safetensors")
    alone = quantctl(*at, *hat)
    assert alone.returncode == 2 and "--cross_moment" in alone.stderr
    cross = quantctl(*at, *hat, "--cross_moment", tmp_path / "cross.safetensors")
    assert cross.returncode == 1 and f"expected {COLS} x {COLS}" in cross.stderr
    residual = quantctl(*at, "--residual_moment", tmp_path / "residual.safetensors")
    assert residual.returncode == 1 and f"expected {ROWS} x {COLS}" in residual.stderr
    missing = quantctl(*at, "--residual_moment", tmp_path / "no-such.safetensors")
    assert missing.returncode == 1 and "no-such.safetensors" in missing.stderr


def test_delete_leaves_nothing_on_the_server(
    start_server: Callable[..., Server],
    quantctl: Tool,
    weights: Path,
    activations: Path,
    tmp_path: Path,
) -> None:
    server = start_server()
    done = quantctl(
        *("--server", server.address, "--json", "quantize", "--weights", weights),
        *("--activations", activations, "--format", "int8", "--delete", "--out", tmp_path / "out"),
        check=True,
    )
    line = json.loads(done.stdout)
    assert line["report"]["tokens"] == TOKENS
    assert Path(line["result"]).exists()
    assert quantctl("--server", server.address, "jobs", "--json", check=True).stdout == ""
    assert quantctl("--server", server.address, "statistics", "--json", check=True).stdout == ""


def test_no_calibration_data(server: Server, quantctl: Tool, weights: Path, tmp_path: Path) -> None:
    """Transforms that need no data run without; what could not be measured is null."""
    for transform in ("identity", "hadamard", "random"):
        out = tmp_path / transform
        quantctl(
            *("--server", server.address, "quantize", "--weights", weights, "--format", "mxfp4"),
            *("--transform", transform, "--seed", "3", "--out", out),
            check=True,
        )
        report = json.loads((out / "report.json").read_text())
        assert report["relative_output_error_weight_only"] is None
        assert 0 < report["relative_weight_error"] < 0.1
    refused = quantctl(
        *("--server", server.address, "quantize", "--weights", weights, "--format", "mxfp4"),
        *("--transform", "wush", "--out", tmp_path / "wush"),
    )
    assert refused.returncode == 2
    assert "--activations" in refused.stderr


def test_interrupt_cancels_the_job(
    server: Server, weights: Path, tmp_path: Path, unique: str
) -> None:
    """The statistic never comes, so the job waits until the interrupt."""
    process = subprocess.Popen(
        [
            *(bin_dir() / "client" / "cli" / "quantctl", "--server", server.address, "quantize"),
            *("--weights", weights, "--statistic", f"{unique}-never", "--job", unique),
            *("--format", "mxfp4", "--transform", "wush", "--out", tmp_path / "out"),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    name = server.api.job_name(unique)

    def uploaded() -> bool:
        jobs = server.api.jobs.ListJobs(jobs_pb2.ListJobsRequest(parent=server.api.parent)).jobs
        if name not in [job.name for job in jobs]:
            return False
        return bool(upload_status(server.api, f"{name}/layers/weight").complete)

    eventually(uploaded, "the weights are uploaded")
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=seconds(20))
    assert process.returncode == 1
    assert f"job {unique} is cancelled" in errors
    assert get_job(server.api, name).state == jobs_pb2.CANCELLED
    assert not (tmp_path / "out" / "result.safetensors").exists()


def _threads_that_take(number: signal.Signals, process: int) -> list[int]:
    """Those that do not block the signal, as ThreadSanitizer's own thread does."""
    found = []
    for task in Path(f"/proc/{process}/task").iterdir():
        status = dict(line.split(":", 1) for line in (task / "status").read_text().splitlines())
        if not int(status["SigBlk"], 16) >> (number - 1) & 1:
            found.append(int(task.name))
    return found


@pytest.mark.parametrize("which", ["main", "oldest", "newest"])
def test_interrupted_watch_leaves_the_job_alone(
    server: Server, quantctl: Tool, unique: str, which: str
) -> None:
    """Whichever thread the kernel picks for the signal, those that libraries start included."""
    job = create_job(server.api, [layer("w", ROWS, COLS)], job_id=unique)
    process = subprocess.Popen(
        [bin_dir() / "client" / "cli" / "quantctl", "--server", server.address, "watch", unique],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    assert "w: waiting" in process.stderr.readline()
    main, *others = sorted(_threads_that_take(signal.SIGINT, process.pid))
    thread = {"main": main, "oldest": others[0], "newest": others[-1]}[which]
    assert ctypes.CDLL(None).tgkill(process.pid, thread, signal.SIGINT) == 0
    _, errors = process.communicate(timeout=seconds(20))
    assert process.returncode == 1
    assert "the job goes on" in errors
    assert get_job(server.api, job.name).state == jobs_pb2.ACCEPTING
    delete_job(server.api, job.name)


def test_watch_follows_a_job_to_its_end(
    server: Server, quantctl: Tool, weights: Path, activations: Path, tmp_path: Path, unique: str
) -> None:
    quantctl(
        *("--server", server.address, "quantize", "--weights", weights, "--job", unique),
        *("--activations", activations, "--format", "nvfp4", "--out", tmp_path / "out"),
        check=True,
    )
    lines = quantctl("--server", server.address, "watch", unique, "--json", check=True).stdout
    last = json.loads(lines.splitlines()[-1])
    assert last["state"] == "succeeded"
    assert [each["state"] for each in last["layers"]] == ["succeeded"]
    cancelled = quantctl("--server", server.address, "cancel", unique, check=True)
    assert "succeeded" in cancelled.stdout  # an ended job stays what it is


def test_dashes_and_underscores(
    server: Server, quantctl: Tool, weights: Path, tmp_path: Path
) -> None:
    moment = np.cov(ACTIVATIONS.T).astype(np.float32)
    save_file({"only_one": moment}, tmp_path / "m.safetensors")
    for second_moment, scale_rule, group_size, value in (
        ("--second_moment", "--scale_rule", "--group_size", "compressed_tensors"),
        ("--second-moment", "--scale-rule", "--group-size", "compressed-tensors"),
    ):
        done = quantctl(
            *("--server", server.address, "quantize", "--weights", weights, "--format", "int4"),
            *(second_moment, tmp_path / "m.safetensors", "--tokens", TOKENS),
            *(scale_rule, value, f"{group_size}=16", "--out", tmp_path / "out"),
            check=True,
        )
        assert "only_one" in done.stderr  # taken, and said so
        report = json.loads((tmp_path / "out" / "report.json").read_text())
        assert report["tokens"] == TOKENS


def test_exit_codes(server: Server, quantctl: Tool, weights: Path, tmp_path: Path) -> None:
    assert quantctl("--help").returncode == 0
    assert quantctl("quantize", "--help").returncode == 0
    assert quantctl("--version").returncode == 0
    assert quantctl().returncode == 2
    assert quantctl("no-such-command").returncode == 2
    assert quantctl("quantize", "--weights", weights).returncode == 2
    for command in ("watch", "cancel", "report"):
        failed = quantctl("--server", server.address, command, "no-such-job")
        assert failed.returncode == 1
        assert "no-such-job" in failed.stderr
    assert quantctl("dequantize", "--in", weights, "--out", tmp_path / "d").returncode == 1


def test_token(start_server: Callable[..., Server], quantctl: Tool) -> None:
    digest = hashlib.sha256(b"secret").hexdigest()
    server = start_server(config=f'tenants {{ name: "a" token_sha256: "{digest}" }}')
    refused = quantctl("--server", server.address, "jobs")
    assert refused.returncode == 1
    assert "--token" in refused.stderr
    quantctl("--server", server.address, "--token", "secret", "jobs", check=True)
    shown = subprocess.run(
        [bin_dir() / "client" / "cli" / "quantctl", "--server", server.address, "info", "--json"],
        env={**os.environ, "QUANTD_TOKEN": "secret"},
        capture_output=True,
        text=True,
        check=True,
        timeout=seconds(20),
    )
    assert json.loads(shown.stdout)["tenant"] == "a"


def test_layer_name_becomes_the_prefix(
    server: Server, quantctl: Tool, activations: Path, tmp_path: Path
) -> None:
    model = tmp_path / "model.safetensors"
    save_file({"model.q_proj.weight": WEIGHT, "model.norm": np.ones(COLS, np.float32)}, model)
    ambiguous = (
        "--server",
        server.address,
        "quantize",
        "--weights",
        tmp_path / "model.safetensors",
    )
    ambiguous += ("--activations", activations, "--format", "int8", "--out", tmp_path / "out")
    failed = quantctl(*ambiguous)
    assert failed.returncode == 1
    assert "model.q_proj.weight" in failed.stderr  # what there is to choose from
    quantctl(*ambiguous, "--tensor", "model.q_proj.weight", check=True)
    with safe_open(tmp_path / "out" / "result.safetensors", "np") as result:
        assert {"model.q_proj.weight_packed", "model.q_proj.weight_scale"} <= set(result.keys())
    quantctl(
        *("dequantize", "--in", tmp_path / "out" / "result.safetensors"),
        *("--out", tmp_path / "out" / "dequantized.safetensors"),
        check=True,
    )
    assert load_file(tmp_path / "out" / "dequantized.safetensors")["weight"].shape == (ROWS, COLS)


def test_a_broken_off_stream_is_continued(
    server: Server, quantctl: Tool, weights: Path, tmp_path: Path, unique: str
) -> None:
    """Rows that an earlier run made durable are neither sent nor counted again."""
    name = server.api.statistic_name(unique)
    rows_per_chunk = min(1 << 20, limits(server.api).max_chunk_bytes) // (COLS * 4)
    many = activations_like(rows_per_chunk + 50, COLS, 83).astype(np.float32)
    save_file({"activations": many}, tmp_path / "many.safetensors")
    stream_activations(
        server.api, name, many[:rows_per_chunk], stream_id="quantctl", chunk_rows=rows_per_chunk
    )
    quantctl(
        *("--server", server.address, "quantize", "--weights", weights, "--statistic", unique),
        *("--activations", tmp_path / "many.safetensors", "--format", "mxfp4"),
        *("--out", tmp_path / "out"),
        check=True,
    )
    assert get_statistic(server.api, name).tokens == len(many)
    assert seal(server.api, name).tokens == len(many)  # already sealed, as before


@pytest.mark.parametrize("shared", [[], ["--shared_memory"]], ids=["inline", "shared-memory"])
def test_quantctl_outlives_its_server(
    start_server: Callable[..., Server], weights: Path, tmp_path: Path, shared: list[str]
) -> None:
    """The server is killed while activations come in and started again: quantctl sends what was
    not durable, nothing is counted twice, and the statistic is the one of an undisturbed run."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = start_server(
        flags=(f"--listen=127.0.0.1:{port}", *shared),
        config="durability { commit_bytes: 1048576 }",
    )
    many = np.tile(ACTIVATIONS, (1500, 1))  # 77 MB
    save_file({"activations": many}, tmp_path / "many.safetensors")

    def quantize(name: str, *more: str) -> list[str]:
        return [
            *(str(bin_dir() / "client" / "cli" / "quantctl"), "--server", server.address),
            *("quantize", "--weights", str(weights), "--statistic", name, "--format", "mxfp4"),
            *("--activations", str(tmp_path / "many.safetensors"), "--transform", "wush"),
            *("--out", str(tmp_path / name), *more),
        ]

    process = subprocess.Popen(quantize("killed", *shared), stderr=subprocess.PIPE, text=True)

    def durable() -> int:
        try:
            return int(get_statistic(server.api, server.api.statistic_name("killed")).tokens)
        except grpc.RpcError as error:
            assert error.code() == grpc.StatusCode.NOT_FOUND
            return 0

    eventually(durable, "some tokens are durable")
    server.kill()
    assert process.poll() is None, "the stream was over before the server was killed"
    server.restart()
    _, errors = process.communicate(timeout=seconds(60))
    assert process.returncode == 0, errors
    subprocess.run(quantize("undisturbed"), check=True, timeout=seconds(60), capture_output=True)
    killed, undisturbed = (
        json.loads((tmp_path / name / "report.json").read_text())
        for name in ("killed", "undisturbed")
    )
    assert killed["tokens"] == undisturbed["tokens"] == len(many)
    assert killed["statistic_digest"] == undisturbed["statistic_digest"]
