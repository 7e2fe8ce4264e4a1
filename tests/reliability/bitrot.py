"""Damage to stored files is noticed: bit flips, truncations and more, in the store and in a server.

The store takes most of it (bitrot_loop.cc); a running server, which reads from disk every time, is
asked for damaged results, weights and statistics: each answer is DATA_LOSS, and fsck finds the
same.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import quantd
from end_to_end.server_process import bin_dir

from .supervisor import Supervised
from .workload import LAYERS, Story


def damage_blobs(directory: Path, runs: int, seed: int) -> dict[str, int]:
    """Runs the fast loop; its counts."""
    directory.mkdir(parents=True)
    done = subprocess.run(
        [
            bin_dir() / "tests" / "reliability" / "bitrot_loop",
            f"--runs={runs}",
            f"--seed={seed}",
            f"--dir={directory}",
        ],
        capture_output=True,
        text=True,
    )
    counts: dict[str, int] = json.loads(done.stdout)
    assert done.returncode == (1 if counts["unnoticed"] else 0), done
    return counts


def damage_server(directory: Path, runs: int, seed: int) -> list[str]:
    """Damages a server's files, one at a time, and asks for everything. What went unnoticed."""
    rng = random.Random(seed)
    supervised = Supervised(directory / "data")
    assert supervised.start()
    story = Story(supervised.address, "story", keep=True).start()
    assert story.join(60) and story.failure is None, story.failure
    files = [p for p in (supervised.data_dir / "blobs").rglob("*") if p.is_file()]
    unnoticed = []
    with quantd.connect(supervised.address, progress=False) as client:
        assert _damaged(client, story) == 0
        for run in range(runs):
            file = rng.choice(files)
            whole = file.read_bytes()
            file.write_bytes(_damage(whole, rng))
            # Weights are read when a layer runs, which has happened: fsck reads them, too.
            if _damaged(client, story) == 0 and not _is_weight(whole):
                unnoticed.append(f"run {run}: {file.name}")
            file.write_bytes(whole)
        assert _damaged(client, story) == 0
    assert supervised.stop() == 0
    for file in files:
        whole = file.read_bytes()
        file.write_bytes(_damage(whole, rng))
        code, report = supervised.fsck()
        if code != 4 or not any(f["kind"] == "BLOB_DAMAGED" for f in report["findings"]):
            unnoticed.append(f"fsck: {file.name}: {report}")
        file.write_bytes(whole)
    assert supervised.fsck()[0] == 0
    supervised.remove()
    return unnoticed


def _is_weight(data: bytes) -> bool:
    from .workload import WEIGHTS

    return any(data == weight.tobytes() for weight in WEIGHTS.values())


def _damage(whole: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(whole))
    if rng.random() < 0.3:
        return whole[:at]
    return whole[:at] + bytes([whole[at] ^ (1 << rng.randrange(8))]) + whole[at + 1 :]


def _damaged(client: quantd.Client, story: Story) -> int:
    """How much of what a story made is refused with DATA_LOSS. Anything else is an error."""
    refused = 0
    for read in (
        *(lambda layer=layer: client.fetch_file(story.name, layer) for layer in LAYERS),
        *(lambda layer=layer: client.get_report(story.name, layer) for layer in LAYERS),
        *(
            lambda name=name: client.export_statistic(name)
            for name in (story.name, story.copy, story.alone)
        ),
    ):
        try:
            read()
        except quantd.errors.DataLoss:
            refused += 1
    return refused


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="reliability bitrot", description=__doc__)
    parser.add_argument("--runs", type=int, default=10_000, help="damages to blobs [10000]")
    parser.add_argument("--server_runs", type=int, default=300, help="to a server's files [300]")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args(arguments)
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="quantd-bitrot-") as folder:
        counts = damage_blobs(Path(folder) / "blobs", options.runs, options.seed)
        unnoticed = damage_server(Path(folder) / "server", options.server_runs, options.seed)
    print(f"store: {counts}")
    print(f"server: {options.server_runs} damages, {len(unnoticed)} unnoticed")
    print(f"{time.monotonic() - started:.0f} s")
    for line in unnoticed:
        print(line)
    return 1 if unnoticed or counts["unnoticed"] else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
