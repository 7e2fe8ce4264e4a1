"""Both clients through a kill -9 in the middle of an upload and of a download.

Streams are in test_python_client.py and test_quantctl_workflow.py.
"""

from __future__ import annotations

import json
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import quantd
from reliability.supervisor import failpoint_names, free_port
from safetensors.numpy import save_file

from .prometheus_text import parse
from .server_process import Server, bin_dir, eventually, seconds
from .wire import gaussian

ROWS, COLS = 2048, 4096
MIB = 1 << 20
pytestmark = pytest.mark.skipif(not failpoint_names(), reason="built without QUANTD_FAILPOINTS")


@pytest.fixture
def server(start_server: Callable[..., Server]) -> Server:
    return start_server(flags=(f"--listen=127.0.0.1:{free_port()}",))


def _traffic(server: Server, direction: str, kind: str) -> float:
    return parse(server.metrics()).value(f"quantd_{direction}_bytes_total", kind=kind)


def _restarted(server: Server, failpoints: str = "") -> None:
    server.kill()
    server.environment = {"QUANTD_FAILPOINTS": failpoints} if failpoints else {}
    server.restart()


def _killed_in_the_middle(server: Server, direction: str, kind: str) -> None:
    """Waits until some of the transfer has gone over the wire, kills, and starts again."""
    eventually(lambda: _traffic(server, direction, kind) >= 2 * MIB, "it is under way", 60)
    _restarted(server)


def test_python_download_goes_on(server: Server) -> None:
    with quantd.connect(server.address, progress=False, retry_timeout_s=60) as client:
        job = client.create_job(
            quantd.Recipe("int8", "identity"), [quantd.LayerSpec("w", ROWS, COLS, "bf16")]
        )
        client.upload_weights(job, "w", gaussian(ROWS, COLS, 1), dtype="bf16")
        client.wait(job)
        whole = client.fetch_file(job, "w")
        assert len(whole) > 8 * MIB
        _restarted(server, "blob.read=delay:200")  # a message every 200 ms
        came: list[bytes] = []
        download = threading.Thread(target=lambda: came.append(client.fetch_file(job, "w")))
        download.start()
        _killed_in_the_middle(server, "sent", "artifacts")
        assert not came, "the download was over before the server was killed"
        download.join(seconds(60))
        assert came == [whole]
        assert _traffic(server, "sent", "artifacts") < len(whole) - MIB, "it started over"


def test_python_upload_goes_on(server: Server) -> None:
    weight = gaussian(ROWS, COLS, 2).astype(np.float32)
    _restarted(server, "blob.append=delay:100")
    with quantd.connect(server.address, progress=False, retry_timeout_s=60) as client:
        job = client.create_job(
            quantd.Recipe("mxfp4", "identity"), [quantd.LayerSpec("w", ROWS, COLS)]
        )
        upload = threading.Thread(target=lambda: client.upload_weights(job, "w", weight))
        upload.start()
        _killed_in_the_middle(server, "received", "weights")
        upload.join(seconds(60))
        assert client.wait(job).state == "SUCCEEDED"


def test_quantctl_goes_on(server: Server, tmp_path: Path) -> None:
    """Killed during its upload, and again during its download."""
    save_file({"weight": gaussian(ROWS, COLS, 3).astype(np.float32)}, tmp_path / "w.safetensors")

    def quantize(out: str) -> list[str]:
        return [
            *(str(bin_dir() / "client" / "cli" / "quantctl"), "--server", server.address),
            *("quantize", "--weights", str(tmp_path / "w.safetensors"), "--format", "int8"),
            *("--transform", "identity", "--out", str(tmp_path / out)),
        ]

    _restarted(server, "blob.append=delay:100")
    process = subprocess.Popen(quantize("killed"), stderr=subprocess.PIPE, text=True)
    eventually(lambda: _traffic(server, "received", "weights") >= 2 * MIB, "it uploads", 60)
    _restarted(server, "blob.read=delay:200")
    _killed_in_the_middle(server, "sent", "artifacts")
    _, errors = process.communicate(timeout=seconds(90))
    assert process.returncode == 0, errors
    subprocess.run(quantize("undisturbed"), check=True, timeout=seconds(60), capture_output=True)
    killed, undisturbed = (
        (tmp_path / out / "result.safetensors").read_bytes() for out in ("killed", "undisturbed")
    )
    assert killed == undisturbed
    assert json.loads((tmp_path / "killed" / "report.json").read_text())["layer"] == "weight"
