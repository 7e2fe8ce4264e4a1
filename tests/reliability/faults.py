"""Disks that are full and syncs that fail, while clients work.

A full disk refuses what finds no room and the server goes on without a restart once there is room.
A failed sync stops what it touched until a restart: what the disk holds is unknown. In both cases
nothing is acknowledged that is not there after a kill -9, and the story ends as it always does.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import quantd
import quantd.transport

from .kill import broken_now, traced, undisturbed
from .supervisor import Supervised, failpoint_names
from .workload import Outcome, Story

FULL = ("blob.append", "blob.create", "blob.mkdir", "blob.commit.rename", "sqlite.wal.write")
#: `.done`: the sync took place and was reported as failed.
SYNCS = tuple(
    name + done
    for name in (
        "blob.sync",
        "blob.sync.directory",
        "blob.commit.fsync",
        "blob.commit.directory",
        "blob.mkdir.directory",
        "sqlite.wal.sync",
    )
    for done in ("", ".done")
)


def disk_full(
    directory: Path, rng: random.Random, hits: Counter[str], expected: Outcome, seen: Counter[str]
) -> str:
    """One run; what went wrong, or nothing."""
    name = rng.choice(FULL)
    first = rng.randint(1, hits[name])
    supervised = _prepared(directory / "full")
    assert supervised.start(f"{name}=enospc@{first}-{first + rng.randint(0, 8)}")
    story = Story(
        supervised.address, "story", tolerates=lambda error: _is_full(error), keep=True
    ).start()
    ended = story.join(30)
    hit = any(line.strip().endswith("enospc") for line in supervised.heard())
    seen[name if hit else "not reached"] += 1
    problem = _ending(story, expected) if ended else f"no end: {story.where()}"
    if not problem and not supervised.running():
        problem = "the server ended"
    if not problem:
        promises = story.promises()
        supervised.kill()
        code, report = supervised.fsck()
        if code != 0:
            problem = f"fsck: {report}"
        else:
            assert supervised.start()
            problem = "; ".join(broken_now(supervised, story, promises))
    supervised.remove()
    return problem and f"{name} from {first}: {problem}"


def sync_error(
    directory: Path, rng: random.Random, hits: Counter[str], expected: Outcome, seen: Counter[str]
) -> str:
    """One run; what went wrong, or nothing."""
    name = rng.choice(SYNCS)
    supervised = _prepared(directory / "sync")
    if not supervised.start(f"{name}=eio@{rng.randint(1, hits[name])}"):
        return f"{name}: the server ended"
    story = Story(supervised.address, "story", tolerates=lambda error: True, keep=True).start()
    began = time.monotonic()
    while not story.join(0.01) and time.monotonic() - began < 5:
        if supervised.heard():
            break
    hit = bool(supervised.heard())
    seen[name if hit else "not reached"] += 1
    problem = ""
    story.join(rng.uniform(0.0, 0.2))
    if hit and name.startswith("sqlite.wal.sync"):
        problem = _takes_nothing(supervised)
    promises = story.promises()
    supervised.kill()
    code, report = supervised.fsck()
    if code != 0:
        problem = problem or f"fsck: {report}"
    assert supervised.start()
    problem = problem or "; ".join(broken_now(supervised, story, promises))
    if not story.join(60):
        problem = problem or f"no end: {story.where()}"
    problem = problem or _ending(story, expected)
    supervised.remove()
    return problem and f"{name}: {problem}"


def _prepared(data_dir: Path) -> Supervised:
    """A server whose directory and database are there: those it needs to start at all."""
    supervised = Supervised(data_dir)
    assert supervised.start()
    supervised.kill()
    return supervised


def _is_full(error: Exception) -> bool:
    return isinstance(error, quantd.errors.ResourceExhausted | quantd.errors.Aborted)


def _ending(story: Story, expected: Outcome) -> str:
    if story.failure is not None:
        return "".join(traceback.format_exception(story.failure))
    if story.outcome != expected:
        return f"expected {expected}, came {story.outcome}"
    return ""


def _takes_nothing(supervised: Supervised) -> str:
    """After a failed sync of the database nothing more may be promised."""
    with quantd.connect(supervised.address, progress=False, retry_timeout_s=1) as client:
        try:
            client.create_job(quantd.Recipe("mxfp4"), [quantd.LayerSpec("l", 8, 32)])
        except quantd.errors.Error as error:
            return "" if error.code == "INTERNAL" else f"expected INTERNAL, came {error}"
    return "a job was created after a failed sync"


@contextmanager
def _impatient() -> Iterator[None]:
    """A full disk asks for ten seconds of patience, for which these runs have no time."""
    patient = quantd.transport.Backoff.next_delay_s

    def impatient(self: quantd.transport.Backoff, error: quantd.errors.Error) -> float:
        error.retry_after_s = None if error.retry_after_s is None else 0.02
        return min(0.1, patient(self, error))

    quantd.transport.Backoff.next_delay_s = impatient  # type: ignore[method-assign]
    try:
        yield
    finally:
        quantd.transport.Backoff.next_delay_s = patient  # type: ignore[method-assign]


def run(directory: Path, runs: int, seed: int, jobs: int = 1) -> tuple[Counter[str], list[str]]:
    """`runs` of each; what was hit and what went wrong."""
    expected = undisturbed(directory)
    hits = traced(directory)
    seen: Counter[str] = Counter()

    def once(number: int) -> list[str]:
        rng = random.Random(f"{seed} {number}")
        here = directory / str(number)
        return [
            problem
            for fault in (disk_full, sync_error)
            if (problem := fault(here, rng, hits, expected, seen))
        ]

    problems: list[str] = []
    with _impatient(), ThreadPoolExecutor(jobs) as pool:
        for number, found in enumerate(pool.map(once, range(runs)), 1):
            problems += found
            if number % 20 == 0 and runs > 20:
                print(f"{number} runs of each, {len(problems)} problems", flush=True)
    return seen, problems


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="reliability faults", description=__doc__)
    parser.add_argument("--runs", type=int, default=200, help="of each of the two faults [200]")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=4, help="servers at once [4]")
    options = parser.parse_args(arguments)
    if not failpoint_names():
        parser.error("this build has no failpoints: use the dev build")
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="quantd-faults-") as folder:
        seen, problems = run(Path(folder), options.runs, options.seed, options.jobs)
    print(f"{options.runs} runs of each fault in {time.monotonic() - started:.0f} s")
    print("hit: " + ", ".join(f"{name} {count}" for name, count in sorted(seen.items())))
    print(f"problems: {len(problems)}")
    for problem in problems:
        print(problem)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
