"""kill.py, short: `./dev reliability kill` is the long run."""

from __future__ import annotations

from pathlib import Path

import pytest

from .kill import Tally, crash_at, kill_at_random, traced, undisturbed
from .supervisor import failpoint_names
from .workload import Outcome

#: One for each way in which an operation can be half done.
FAILPOINTS = (
    "blob.commit.rename.done",
    "commit.stream",
    "ingest.stream.acknowledge",
    "sqlite.database.write",
    "sqlite.wal.sync",
)


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    return undisturbed(tmp_path_factory.mktemp("undisturbed"))


def test_killed_at_random_moments(tmp_path: Path, expected: Outcome) -> None:
    tally = kill_at_random(tmp_path, 8, 20, expected, Tally())
    assert not tally.broken
    assert tally.kills >= 8
    assert tally.stories >= 1
    assert tally.fsck_runs >= 1


@pytest.mark.skipif(not failpoint_names(), reason="built without QUANTD_FAILPOINTS")
def test_crashed_at_failpoints(tmp_path: Path, expected: Outcome) -> None:
    hits = traced(tmp_path)
    for name in FAILPOINTS:
        tally = crash_at(tmp_path, name, hits[name], 2, 20, expected, Tally())
        assert not tally.broken
        assert tally.crashes[name] >= 2
