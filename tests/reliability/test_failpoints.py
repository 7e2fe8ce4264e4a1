"""Failpoints: what the program lists is what the sources have, and a build without has none."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from pathlib import Path

import pytest
from end_to_end.server_process import REPOSITORY, bin_dir

from .supervisor import failpoint_names

NAMES = failpoint_names()
pytestmark = pytest.mark.skipif(not NAMES, reason="built without QUANTD_FAILPOINTS")


def _in_sources() -> set[str]:
    steps, operations = set(), set()
    for file in (REPOSITORY / "server").rglob("*.cc"):
        text = file.read_text()
        steps |= set(re.findall(r'\bFailpoint\(\s*"([a-z_.]+)"', text))
        operations |= set(re.findall(r'\bAtFailpoint\(\s*"([a-z_.]+)"', text))
        operations |= set(re.findall(r'->Commit\(\s*"([a-z_.]+)"', text))
    # Made of the file's kind and the operation (failpoint_vfs.cc).
    operations |= {f"sqlite.{k}.{o}" for k in ("wal", "database") for o in ("write", "sync")}
    return steps | operations | {f"{name}.done" for name in operations}


def test_the_list_is_complete() -> None:
    assert set(NAMES) == _in_sources()


def test_a_name_that_is_none_is_refused() -> None:
    done = subprocess.run(
        [bin_dir() / "server" / "quantd", "--data_dir=/nonexistent/quantd"],
        env={"QUANTD_FAILPOINTS": "blob.apend=crash"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2
    assert "there is no 'blob.apend'" in done.stderr


def test_without_the_option_nothing_of_them_is_in_the_program(tmp_path: Path) -> None:
    """The same source, compiled with this build's command and without its option."""
    commands = json.loads((bin_dir() / "compile_commands.json").read_text())
    entry = next(c for c in commands if c["file"].endswith("server/store/local_blob_store.cc"))
    command = shlex.split(entry["command"])
    if Path(command[0]).name == "ccache":
        command = command[1:]
    assert "-DQUANTD_FAILPOINTS" in command
    command[command.index("-o") + 1] = str(tmp_path / "without.o")
    command = [word for word in command if word != "-DQUANTD_FAILPOINTS"]
    subprocess.run(command, cwd=entry["directory"], check=True, timeout=300)
    without = (tmp_path / "without.o").read_bytes()
    built = (bin_dir() / "server" / "quantd").read_bytes()
    blob_names = [n.encode() for n in NAMES if n.startswith("blob.") and not n.endswith(".done")]
    for name in blob_names:
        assert name in built
        assert name not in without
    assert b"HitFailpoint" not in without
