"""faults.py, short: `./dev reliability faults` is the long run."""

from __future__ import annotations

from pathlib import Path

import pytest
import quantd

from .faults import run
from .supervisor import Supervised, failpoint_names
from .workload import COLS, ROWS, WEIGHTS


@pytest.mark.skipif(not failpoint_names(), reason="built without QUANTD_FAILPOINTS")
def test_full_disks_and_failed_syncs(tmp_path: Path) -> None:
    seen, problems = run(tmp_path, 3, seed=20, jobs=2)
    assert not problems
    assert sum(count for name, count in seen.items() if name != "not reached") >= 4


@pytest.mark.skipif(not failpoint_names(), reason="built without QUANTD_FAILPOINTS")
def test_a_layer_waits_for_room_in_the_database(tmp_path: Path) -> None:
    """The log of the database is full at every moment of a layer's life in turn: ready, started,
    finished. The layer ends all the same, without a restart."""
    supervised = Supervised(tmp_path / "data")
    for number in range(1, 4):
        # Of a job's updates the first two are about its upload, the next ones about its layer.
        assert supervised.start(f"commit.update_job=enospc@{number + 2}-{number + 3}")
        with quantd.connect(supervised.address, progress=False) as client:
            job = client.create_job(
                quantd.Recipe("mxfp4", "identity"), [quantd.LayerSpec("w", ROWS, COLS)]
            )
            client.upload_weights(job, "w", WEIGHTS["plain"])
            ended = client.wait(job, timeout_s=30, check=False)
            assert ended.finished_layers == 1
            error = ended.layers[0].error
            assert ended.state == "SUCCEEDED" or (error and error.code == "RESOURCE_EXHAUSTED")
        assert supervised.stop() == 0
        assert sum(line.endswith("enospc") for line in supervised.said) == 2 * number
    assert supervised.fsck()[0] == 0
