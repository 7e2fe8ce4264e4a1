"""faults.py, short: `./dev reliability faults` is the long run."""

from __future__ import annotations

from pathlib import Path

import pytest

from .faults import run
from .supervisor import failpoint_names


@pytest.mark.skipif(not failpoint_names(), reason="built without QUANTD_FAILPOINTS")
def test_full_disks_and_failed_syncs(tmp_path: Path) -> None:
    seen, problems = run(tmp_path, 3, seed=20, jobs=2)
    assert not problems
    assert sum(count for name, count in seen.items() if name != "not reached") >= 4
