"""kill -9, at random moments and at every failpoint, while clients work; then all is checked.

A story (workload.py) runs through any number of kills. After each restart the server must still
have what it had acknowledged; at the end the tokens, the digest of the statistic, its sum and the
results must equal those of a run that nothing disturbed.
"""

from __future__ import annotations

import argparse
import random
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path

from quantd.errors import NotFound

from .supervisor import Supervised, failpoint_names, hits_of
from .workload import Outcome, Promises, Story, broken_promises

CRASHES_A_STORY = 5
#: Only a shutdown comes by these: what is in the log is moved to the database then.
AT_SHUTDOWN = ("sqlite.database.", "sqlite.delete")


@dataclass
class Tally:
    """What a loop has seen."""

    stories: int = 0
    kills: int = 0
    crashes: Counter[str] = field(default_factory=Counter)
    broken: list[str] = field(default_factory=list)
    fsck_runs: int = 0

    def __iadd__(self, other: Tally) -> Tally:
        self.stories += other.stories
        self.kills += other.kills
        self.crashes += other.crashes
        self.broken += other.broken
        self.fsck_runs += other.fsck_runs
        return self

    def check_fsck(self, supervised: Supervised) -> None:
        self.fsck_runs += 1
        code, report = supervised.fsck()
        if code != 0:
            self.broken.append(f"fsck: {report}")

    def check_story(self, story: Story, expected: Outcome) -> None:
        self.stories += 1
        if story.failure is not None:
            trace = "".join(traceback.format_exception(story.failure))
            self.broken.append(f"{story.name}: {trace}")
        elif story.outcome != expected:
            self.broken.append(f"{story.name}: expected {expected}, came {story.outcome}")


def undisturbed(directory: Path) -> Outcome:
    """The outcome of every story."""
    supervised = Supervised(directory / "undisturbed")
    assert supervised.start()
    story = Story(supervised.address, "story").start()
    assert story.join(60) and story.failure is None, story.failure
    assert supervised.stop() == 0
    supervised.remove()
    assert story.outcome is not None
    return story.outcome


def kill_at_random(
    directory: Path, kills: int, seed: int, expected: Outcome, tally: Tally
) -> Tally:
    """Kills one server `kills` times, story after story on the same data directory."""
    rng = random.Random(seed)
    supervised = Supervised(directory / f"random-{seed}")
    assert supervised.start()
    number = 0
    while tally.kills < kills and not tally.broken:
        story = Story(supervised.address, f"story-{number}", pace_s=0.01).start()
        number += 1
        # In the measure of a start: on a busy machine clients need longer to come back, too.
        while not story.join(rng.uniform(0.0, 5 * supervised.start_s)):
            promises = story.promises()
            supervised.kill()
            tally.kills += 1
            if tally.kills % 10 == 0:
                tally.check_fsck(supervised)
            assert supervised.start()
            tally.broken += broken_now(supervised, story, promises)
        tally.check_story(story, expected)
    assert supervised.stop() == 0
    tally.check_fsck(supervised)
    supervised.remove()
    return tally


def traced(directory: Path) -> Counter[str]:
    """How often one story and a shutdown come by each failpoint."""
    supervised = Supervised(directory / "traced")
    assert supervised.start("*=trace")
    story = Story(supervised.address, "story").start()
    assert story.join(60) and story.failure is None, story.failure
    assert supervised.stop() == 0
    hits = Counter(line.split()[1] for line in supervised.said)
    supervised.remove()
    return hits


def crash_at(
    directory: Path, name: str, hits: int, times: int, seed: int, expected: Outcome, tally: Tally
) -> Tally:
    """Crashes servers at one failpoint `times` times, at any of its `hits` in a story: a few times
    in each story, each of which has a data directory of its own."""
    rng = random.Random(f"{seed} {name}")
    stories = 0
    while tally.crashes[name] < times and stories < times and not tally.broken:
        stories += 1
        supervised = Supervised(directory / name)
        at_once = min(CRASHES_A_STORY, times - tally.crashes[name])
        _crash(supervised, name, hits, at_once, rng, expected, tally)
        supervised.remove()
    return tally


def _crash(
    supervised: Supervised,
    name: str,
    hits: int,
    times: int,
    rng: random.Random,
    expected: Outcome,
    tally: Tally,
) -> None:
    story = Story(supervised.address, "story", tolerates=_is_full)
    promises = Promises()
    for crash in range(times):
        if name.startswith("blob.resume.rename"):  # a blob was renamed, its record not written
            assert supervised.start("ingest.upload.finish=crash")
            story.start_once()
            if not supervised.wait_for_death(20):
                break
        rules = f"{name}=crash@{rng.randint(1, max(1, hits // (crash + 1)))}"
        if name.startswith("blob.append.undo"):  # what a full disk left is cut off
            rules += f"; blob.append=enospc@{rng.randint(1, max(1, 15 // (crash + 1)))}"
        listening = supervised.start(rules)
        story.start_once()
        if listening:
            promises = _until_crash(supervised, story, rng, name.startswith(AT_SHUTDOWN))
        if supervised.running():  # the story is over
            break
    if not supervised.running():
        tally.check_fsck(supervised)
        assert supervised.start()
        tally.broken += broken_now(supervised, story, promises)
    if not story.join(60):
        tally.broken.append(f"{name}: no end: {story.where()}")
        return
    tally.check_story(story, expected)
    tally.crashes[name] += hits_of(supervised.said, name)
    code = supervised.stop()
    if code not in (0, -signal.SIGKILL):
        tally.broken.append(f"{name}: the server ended with {code}")


def _until_crash(
    supervised: Supervised, story: Story, rng: random.Random, at_shutdown: bool
) -> Promises:
    """Returns what was promised before the server died, or when the story ended."""
    promises = story.promises()
    stop_at = time.monotonic() + (rng.uniform(0.05, 0.3) if at_shutdown else float("inf"))
    while supervised.running() and not story.join(0.005):
        now = story.promises()
        if supervised.running():  # what came later may be about a server that is gone
            promises = now
        if time.monotonic() > stop_at:
            break
    if supervised.running() and at_shutdown:
        supervised.stop()
    elif not supervised.running():
        supervised.wait(5)
    return promises


def _is_full(error: Exception) -> bool:
    return type(error).__name__ == "ResourceExhausted"


def broken_now(supervised: Supervised, story: Story, promises: Promises) -> list[str]:
    """What was promised before and is not there. A story that ends gives its things up."""
    try:
        broken = broken_promises(supervised.address, story, promises)
    except NotFound as error:
        broken = [f"{story.name}: {promises} acknowledged, now {error}"]
    return [] if story.gave_up else broken


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="reliability kill", description=__doc__)
    parser.add_argument("--runs", type=int, default=1000, help="kills at random moments [1000]")
    parser.add_argument("--crashes", type=int, default=50, help="crashes at each failpoint [50]")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=4, help="servers at once [4]")
    parser.add_argument("--only", default="", help="failpoints whose name starts with this")
    options = parser.parse_args(arguments)
    total = Tally()
    started = time.monotonic()
    with (
        tempfile.TemporaryDirectory(prefix="quantd-kill-") as folder,
        ThreadPoolExecutor(options.jobs) as pool,
    ):
        directory = Path(folder)
        expected = undisturbed(directory)
        share = -(-options.runs // options.jobs)
        running = [
            pool.submit(kill_at_random, directory, share, seed, expected, Tally())
            for seed in range(options.seed, options.seed + options.jobs)
            if options.runs
        ]
        if options.crashes and failpoint_names():
            hits = traced(directory)
            running += [
                pool.submit(
                    crash_at,
                    directory,
                    name,
                    hits[name],
                    options.crashes,
                    options.seed,
                    expected,
                    Tally(),
                )
                for name in failpoint_names()
                if name.startswith(options.only)
            ]
        for done in as_completed(running):
            tally = done.result()
            total += tally
            for line in tally.broken:
                print(line, flush=True)
            for name, crashes in tally.crashes.items():
                print(f"{name}: {crashes} crashes, {len(tally.broken)} broken", flush=True)
            if tally.kills:
                print(f"{tally.kills} kills, {len(tally.broken)} broken", flush=True)
    print(
        f"{total.kills} kills at random moments, {sum(total.crashes.values())} crashes at"
        f" {len(total.crashes)} failpoints, {total.stories} stories, {total.fsck_runs} runs of"
        f" fsck in {time.monotonic() - started:.0f} s; broken: {len(total.broken)}"
    )
    fewest = min(total.crashes.values(), default=0)
    if options.crashes and fewest < options.crashes:
        print(f"a failpoint was crashed {fewest} times, not {options.crashes}")
        return 1
    return 1 if total.broken else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
