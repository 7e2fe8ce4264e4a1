"""bitrot.py, short: `./dev reliability bitrot` is the long run."""

from __future__ import annotations

from pathlib import Path

from .bitrot import damage_blobs, damage_server


def test_damaged_blobs_are_noticed(tmp_path: Path) -> None:
    counts = damage_blobs(tmp_path / "blobs", 300, 20)
    assert counts["unnoticed"] == 0
    assert counts["whole_ones_read"]
    assert counts["bit flips"] > 100


def test_a_server_refuses_damaged_files(tmp_path: Path) -> None:
    assert damage_server(tmp_path, 20, 20) == []
