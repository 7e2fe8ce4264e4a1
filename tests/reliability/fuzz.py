"""Runs the libFuzzer targets of tests/fuzz with sanitizers, and counts.

One after the other, or `--jobs` processes at a time: then `--shares` processes with seeds of their
own share the inputs of a target. Each starts from its corpus in tests/fuzz/corpus and from what
earlier runs found, which lies in build/fuzz/found. A finding ends its process and is kept beside
that; fix it, then add the input to the corpus, where the ordinary tests run it from then on.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
CORPUS = REPOSITORY / "tests" / "fuzz" / "corpus"
BUILD = REPOSITORY / "build" / "fuzz"
FOUND = BUILD / "found"
SEQUENCES = "rpc_sequence"  # whole servers and calls: counted apart
#: What a kept corpus may take, so that the repository stays small.
KEPT_FILES = 40
KEPT_BYTES = 2048
_STATISTIC = re.compile(r"^stat::(\w+):\s+(\d+)", re.MULTILINE)
_COVERAGE = re.compile(r"cov: (\d+)")


@dataclass(frozen=True)
class Outcome:
    """What came of one target."""

    target: str
    inputs: int
    seconds: float
    edges: int  # of code that inputs have reached
    finding: str  # empty: none

    def line(self) -> str:
        rate = self.inputs / max(self.seconds, 1e-3)
        verdict = f"FOUND: {self.finding}" if self.finding else "nothing found"
        return (
            f"{self.target:20} {self.inputs:>11,} inputs {self.seconds:7.0f} s "
            f"{rate:>8,.0f}/s {self.edges:>6} edges  {verdict}"
        )


def program(target: str) -> Path:
    path = BUILD / "tests" / "fuzz" / f"fuzz_{target}"
    if not path.exists():
        sys.exit(f"{path} is missing: ./dev reliability fuzz builds it")
    return path


def together(parts: list[Outcome]) -> Outcome:
    """Of the processes of one target."""
    return Outcome(
        parts[0].target,
        sum(part.inputs for part in parts),
        max(part.seconds for part in parts),
        max(part.edges for part in parts),
        "; ".join(part.finding for part in parts if part.finding),
    )


def run(target: str, runs: int, seed: int, most_seconds: int) -> Outcome:
    """One process; its temporary files are in memory where the machine has room for that."""
    found, findings = FOUND / target, FOUND / "findings"
    for folder in (found, findings):
        folder.mkdir(parents=True, exist_ok=True)
    memory = Path("/dev/shm")
    log = FOUND / f"{target}-{seed}.log"
    started = time.monotonic()
    with (
        tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as scratch,
        log.open("w") as output,
    ):
        done = subprocess.run(
            [
                program(target),
                f"-runs={runs}",
                f"-seed={seed}",
                f"-max_total_time={most_seconds}",
                "-rss_limit_mb=2048",
                "-timeout=60",
                "-print_final_stats=1",
                # Threads of gRPC and OpenSSL keep memory from one input to the next.
                f"-detect_leaks={int(target != SEQUENCES)}",
                "-reload=0",
                f"-artifact_prefix={findings / target}-",
                found,
                CORPUS / target,
            ],
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, "TMPDIR": scratch},
            check=False,
        )
    text = log.read_text(errors="replace")
    statistics = {name: int(value) for name, value in _STATISTIC.findall(text)}
    edges = [int(value) for value in _COVERAGE.findall(text)]
    return Outcome(
        target,
        statistics.get("number_of_executed_units", 0),
        time.monotonic() - started,
        max(edges, default=0),
        "" if done.returncode == 0 else f"status {done.returncode}, see {log}",
    )


def keep(target: str) -> int:
    """Adds to the corpus the fewest small inputs that reach what it does not; returns how many."""
    corpus = CORPUS / target
    before = len(list(corpus.iterdir()))
    with tempfile.TemporaryDirectory() as folder:
        small, merged = Path(folder) / "small", Path(folder) / "merged"
        small.mkdir()
        shutil.copytree(corpus, merged)
        for file in (FOUND / target).iterdir():
            if file.stat().st_size <= KEPT_BYTES:
                shutil.copy(file, small)
        subprocess.run(
            [program(target), "-set_cover_merge=1", "-use_counters=0", merged, small],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            check=True,
        )
        fresh = sorted(
            (file for file in merged.iterdir() if not (corpus / file.name).exists()),
            key=lambda file: (file.stat().st_size, file.name),
        )
        room = max(0, KEPT_FILES - before)
        for file in fresh[:room]:
            shutil.copy(file, corpus / file.name[:16])
    return min(len(fresh), room)


def main(arguments: list[str]) -> int:
    targets = sorted(folder.name for folder in CORPUS.iterdir())
    parser = argparse.ArgumentParser(prog="reliability fuzz", description=__doc__)
    parser.add_argument("--runs", type=int, default=1_000_000, help="inputs a parser [1000000]")
    parser.add_argument("--sequences", type=int, default=10_000, help="RPC sequences [10000]")
    parser.add_argument("--seconds", type=int, default=0, help="at most, a target [no limit]")
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time [1]")
    parser.add_argument("--shares", type=int, default=0, help="processes a target [as --jobs has]")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--target", action="append", choices=targets, help="this one [all]")
    parser.add_argument("--keep", action="store_true", help="add what was found to the corpus")
    options = parser.parse_args(arguments)
    chosen = options.target or targets
    shares = options.shares or max(1, options.jobs // len(chosen))
    findings = 0
    with ThreadPoolExecutor(max_workers=options.jobs) as pool:
        running = {}
        for target in chosen:
            runs = options.sequences if target == SEQUENCES else options.runs
            running[target] = [
                pool.submit(run, target, -(-runs // shares), options.seed + i, options.seconds)
                for i in range(shares)
            ]
        for target, parts in running.items():
            outcome = together([part.result() for part in parts])
            findings += bool(outcome.finding)
            print(outcome.line(), flush=True)
            if options.keep:
                print(f"{'':20} {keep(target)} inputs kept", flush=True)
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
