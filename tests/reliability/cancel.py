"""How soon a running layer stops when its job is cancelled, on the CPU.

Cancels layers of some thousand columns at random moments and waits until the slot is free. Besides
the time, which depends on what else the machine does, counts the processor time that the server
spends from the cancellation on.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
import time
from pathlib import Path

from end_to_end.server_process import Server, eventually
from end_to_end.wire import activations_like, gaussian, get_job, layer, sealed_statistic, upload
from quantd.v1 import jobs_pb2, recipe_pb2

RECIPES = {
    "rtn, wush, conditional": recipe_pb2.Recipe(
        format=recipe_pb2.INT4,
        group_size=128,
        transform=recipe_pb2.WUSH,
        solver=recipe_pb2.CONDITIONAL,
    ),
    "gptq, wush": recipe_pb2.Recipe(
        format=recipe_pb2.INT4,
        group_size=128,
        transform=recipe_pb2.WUSH,
        method=recipe_pb2.GPTQ,
    ),
    "watersic": recipe_pb2.Recipe(
        format=recipe_pb2.ENTROPY_CODED, method=recipe_pb2.WATERSIC, rate_bits=3
    ),
}


def _processor_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Loop:
    """A server with a weight and a statistic that every run uses."""

    def __init__(self, server: Server, cols: int):
        self.server = server
        self.cols = cols
        self.statistic = sealed_statistic(server.api, "s", activations_like(256, cols, 1)).name
        self.source = self._create("source", recipe_pb2.Recipe(format=recipe_pb2.MXFP4), "")
        upload(server.api, self.source.layers[0].name, gaussian(cols, cols, 1))
        self._ended("source", 120)

    def _create(self, job_id: str, recipe: recipe_pb2.Recipe, weight_of: str) -> jobs_pb2.Job:
        described = layer("w", self.cols, self.cols, statistic=self.statistic, weight_of=weight_of)
        request = jobs_pb2.CreateJobRequest(
            parent=self.server.api.parent,
            job_id=job_id,
            job=jobs_pb2.Job(recipe=recipe, layers=[described]),
        )
        return self.server.api.jobs.CreateJob(request).job

    def _ended(self, job_id: str, within: float) -> bool:
        name = f"/jobs/{job_id}"

        def seen() -> bool:
            return any(
                entry["event"] == "work_ended" and entry["job"].endswith(name)
                for entry in self.server.log
            )

        return bool(eventually(seen, f"the slot of {job_id} is free", within))

    def run(
        self, job_id: str, recipe: recipe_pb2.Recipe, after: float
    ) -> tuple[float, float] | None:
        """Seconds and processor seconds to a free slot; None where the layer was done before."""
        api = self.server.api
        job = self._create(job_id, recipe, self.source.layers[0].name)
        eventually(lambda: get_job(api, job.name).state != jobs_pb2.QUEUED, "it runs", 60)
        used = _processor_seconds(self.server.pid)
        while _processor_seconds(self.server.pid) < used + after:
            if get_job(api, job.name).state != jobs_pb2.RUNNING:
                return None
            time.sleep(0.02)
        used = _processor_seconds(self.server.pid)
        started = time.monotonic()
        cancelled = api.jobs.CancelJob(jobs_pb2.CancelJobRequest(name=job.name))
        if cancelled.state != jobs_pb2.CANCELLED:
            return None
        self._ended(job_id, 120)
        return time.monotonic() - started, _processor_seconds(self.server.pid) - used


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="reliability cancel", description=__doc__)
    parser.add_argument("--runs", type=int, default=20, help="cancellations a recipe [20]")
    parser.add_argument("--cols", type=int, default=4096, help="rows and columns [4096]")
    parser.add_argument(
        "--within", type=float, default=30, help="processor seconds of a layer [30]"
    )
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args(arguments)
    rng = random.Random(options.seed)
    with tempfile.TemporaryDirectory(prefix="quantd-cancel-") as folder:
        server = Server(Path(folder) / "data").start()
        loop = Loop(server, options.cols)
        for number, (name, recipe) in enumerate(RECIPES.items()):
            figures = []
            while len(figures) < options.runs:
                job_id = f"r{number}-{len(figures)}-{rng.randrange(10**9)}"
                figure = loop.run(job_id, recipe, rng.uniform(0, options.within))
                if figure is not None:
                    figures.append(figure)
            waits, used = (sorted(column) for column in zip(*figures, strict=True))
            middle = len(figures) // 2
            print(
                f"{name}: {len(figures)} cancellations, seconds {waits[middle]:.2f} (median) "
                f"{waits[-1]:.2f} (most), processor seconds {used[middle]:.2f} {used[-1]:.2f}",
                flush=True,
            )
        server.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
