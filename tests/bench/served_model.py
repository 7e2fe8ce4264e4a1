"""A model's layers through a running server, as a training pipeline would send them.

    quantd --data_dir DIR &
    python tests/bench/served_model.py --server 127.0.0.1:7741 [--blocks 32] [--shared_memory]
        [--cuda_ipc]

First one layer: 65,536 tokens of 4,096 inputs streamed, then the time from the last acknowledged
chunk to the packed result of 4096 x 4096 WUSH GPTQ in MXFP4; by gRPC and by the paths asked for.
Then, by the last of them, `--blocks` transformer blocks of Llama-3.1-8B's shapes (7 linear layers
and 4 statistics each), some in flight at once. Then `--again` blocks whose weights and statistics
the server has, which shows what its devices do without a client to wait for. The data is made up:
heavy-tailed and correlated. Prints one JSON object a line.
"""

import argparse
import importlib
import json
import shutil
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import quantd
from numpy.typing import NDArray

HIDDEN = 4096
WIDE = 14336
# name: (rows, cols, statistic)
LAYERS = {
    "q": (HIDDEN, HIDDEN, "attention-in"),
    "k": (1024, HIDDEN, "attention-in"),
    "v": (1024, HIDDEN, "attention-in"),
    "o": (HIDDEN, HIDDEN, "attention-out"),
    "gate": (WIDE, HIDDEN, "mlp-in"),
    "up": (WIDE, HIDDEN, "mlp-in"),
    "down": (HIDDEN, WIDE, "mlp-mid"),
}
# How activations get to the server.
PATHS: dict[str, dict[str, Any]] = {
    "gRPC": {},
    "shared memory": {"shared_memory": True},
    "CUDA IPC": {"cuda_ipc": True},
}
RECIPE = quantd.Recipe("mxfp4", "wush", method="gptq", damping=0.01, skip_rate_theory=True)


def print_line(name: str, value: float, unit: str, **more: Any) -> None:
    print(json.dumps({"name": name, "value": round(value, 4), "unit": unit, **more}), flush=True)


def activations(tokens: int, cols: int, seed: int) -> NDArray[Any]:
    """Neighbours are correlated, columns differ by octaves, some are outliers."""
    random = np.random.default_rng(seed)
    x = random.standard_normal((min(tokens, 8192), cols), dtype=np.float32)
    x[:, 1:] += 0.7 * x[:, :-1]
    scale = np.exp2(random.standard_normal(cols)).astype(np.float32)
    scale[::128] *= 30
    x *= scale
    return np.tile(quantd.to_bfloat16(x), (-(-tokens // len(x)), 1))[:tokens]


def weight(rows: int, cols: int, seed: int) -> NDArray[Any]:
    random = np.random.default_rng(seed)
    return quantd.to_bfloat16(0.02 * random.standard_t(5, (rows, cols)).astype(np.float32))


def placed(x: NDArray[Any], path: str) -> Any:
    """Where a trainer has it that takes this path; bit patterns in either place."""
    if path != "CUDA IPC":
        return x
    return importlib.import_module("torch").from_numpy(x.view(np.int16)).cuda()


class GpuWatch:
    """Samples utilisation and memory of all GPUs with nvidia-smi while it is entered."""

    def __enter__(self) -> "GpuWatch":
        self.utilisation: list[float] = []
        self.memory: list[float] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        if shutil.which("nvidia-smi") is None:
            return
        query = ["nvidia-smi", "--query-gpu=utilization.gpu,memory.used", "--format=csv,noheader"]
        while not self._stop.wait(0.5):
            done = subprocess.run(query, capture_output=True, text=True, check=False)
            rows = [line.split(", ") for line in done.stdout.strip().splitlines()]
            if not rows:
                return
            self.utilisation.append(sum(float(r[0].split()[0]) for r in rows) / len(rows))
            self.memory.append(max(float(r[1].split()[0]) for r in rows) / 1024)

    def figures(self) -> dict[str, float]:
        if not self.utilisation:
            return {}
        return {
            "mean_utilisation_percent": round(float(np.mean(self.utilisation)), 1),
            "peak_memory_gib": round(max(self.memory), 1),
        }


def one_layer(client: quantd.Client, path: str) -> None:
    tokens = 65536
    x = activations(tokens, HIDDEN, 1)
    inputs = placed(x, path)
    w = weight(HIDDEN, HIDDEN, 2)
    for round_ in range(2):  # the first one warms up
        name = f"one-{path.replace(' ', '-')}-{round_}-{time.time_ns()}"
        spec = quantd.LayerSpec("layer", HIDDEN, HIDDEN, dtype="bf16", statistic=name)
        job = client.create_job(RECIPE, [spec])
        client.upload_weights(job, "layer", w, dtype="bf16")
        began = time.perf_counter()
        client.stream_activations(name, inputs, dtype="bf16", **PATHS[path])
        streamed = time.perf_counter()
        client.seal_statistic(name)
        sealed = time.perf_counter()
        client.wait(job)
        quantized = time.perf_counter()
        client.fetch(job, "layer")
        fetched = time.perf_counter()
    print_line("served_ingest_65536x4096", x.nbytes / (streamed - began) / 1e9, "GB/s", path=path)
    report = client.get_report(job, "layer")
    print_line(
        "served_last_ack_to_result_4096x4096_wush_gptq",
        fetched - streamed,
        "s",
        seal=round(sealed - streamed, 4),
        quantize=round(quantized - sealed, 4),
        fetch=round(fetched - quantized, 4),
        report_seconds=report.get("seconds"),
    )
    client.delete_job(job)


class Model:
    """Transformer blocks on their way through a server; all take the same made-up data."""

    def __init__(self, server: str, tokens: int, path: str) -> None:
        self._server = server
        self._tokens = tokens
        self._path = path
        self._run = time.time_ns()
        self._inputs = {
            cols: placed(activations(tokens, cols, cols), path) for cols in (HIDDEN, WIDE)
        }
        shapes = {(rows, cols) for rows, cols, _ in LAYERS.values()}
        self._weights = {shape: weight(*shape, seed=sum(shape)) for shape in shapes}

    def through(self, blocks: int, in_flight: int) -> None:
        """Everything is sent, quantized and deleted, block by block."""
        with GpuWatch() as watch, ThreadPoolExecutor(in_flight) as pool:
            began = time.perf_counter()
            by_stage = sum(pool.map(self._one, range(blocks)), Counter[str]())
            seconds = time.perf_counter() - began
        self._print("served_8b_model_wush_gptq", seconds, blocks, by_stage, watch)

    def again(self, blocks: int) -> None:
        """As many blocks take the weights and statistics of one that the server has already."""
        with quantd.connect(self._server, progress=False) as client:
            first = client.create_job(RECIPE, self._specs("again"))
            self._send(client, first, "again")
            client.wait(first)
            known = {layer.layer_id: layer.name for layer in client.get_job(first).layers}
            specs = self._specs("again", known)
            with GpuWatch() as watch:
                began = time.perf_counter()
                jobs = [client.create_job(RECIPE, specs) for _ in range(blocks)]
                for job in jobs:
                    client.wait(job)
                seconds = time.perf_counter() - began
            by_stage = sum((self._seconds(client, job) for job in jobs), Counter[str]())
            for job in [*jobs, first]:
                client.delete_job(job)
            self._forget(client, "again")
        self._print("served_8b_model_wush_gptq_resident", seconds, blocks, by_stage, watch)

    def _one(self, block: int) -> Counter[str]:
        with quantd.connect(self._server, progress=False) as client:
            job = client.create_job(RECIPE, self._specs(block))
            self._send(client, job, block)
            client.wait(job)
            seconds = self._seconds(client, job)
            client.delete_job(job)
            self._forget(client, block)
        return seconds

    def _statistic(self, block: object, name: str) -> str:
        return f"m{self._run}-{block}-{name}"

    def _specs(
        self, block: object, weights: Mapping[str, str] | None = None
    ) -> list[quantd.LayerSpec]:
        return [
            quantd.LayerSpec(
                name,
                rows,
                cols,
                dtype="bf16",
                statistic=self._statistic(block, needs),
                weight_of="" if weights is None else weights[name],
            )
            for name, (rows, cols, needs) in LAYERS.items()
        ]

    def _send(self, client: quantd.Client, job: quantd.Job, block: object) -> None:
        for name, (rows, cols, _) in LAYERS.items():
            client.upload_weights(job, name, self._weights[rows, cols], dtype="bf16")
        for needs, cols in {needs: cols for _, cols, needs in LAYERS.values()}.items():
            client.stream_activations(
                self._statistic(block, needs),
                self._inputs[cols],
                dtype="bf16",
                **PATHS[self._path],
            )
            client.seal_statistic(self._statistic(block, needs))

    def _forget(self, client: quantd.Client, block: object) -> None:
        for needs in {needs for *_, needs in LAYERS.values()}:
            client.delete_statistic(self._statistic(block, needs))

    def _seconds(self, client: quantd.Client, job: quantd.Job) -> Counter[str]:
        """Of its layers, by stage, in microseconds."""
        seconds: Counter[str] = Counter()
        for name in LAYERS:
            for stage, value in client.get_report(job, name)["seconds"].items():
                seconds[stage] += round(value * 1e6)
        return seconds

    def _print(
        self, name: str, seconds: float, blocks: int, by_stage: Counter[str], watch: GpuWatch
    ) -> None:
        print_line(
            name,
            seconds,
            "s",
            layers=blocks * len(LAYERS),
            tokens=self._tokens,
            layer_seconds={stage: round(us / 1e6, 3) for stage, us in sorted(by_stage.items())},
            **watch.figures(),
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--server", default="127.0.0.1:7741")
    parser.add_argument("--blocks", type=int, default=32, help="blocks to send; 0: none")
    parser.add_argument("--again", type=int, default=32, help="blocks of resident inputs; 0: none")
    parser.add_argument("--tokens", type=int, default=4096, help="calibration tokens a statistic")
    parser.add_argument("--in_flight", type=int, default=3, help="blocks at once")
    parser.add_argument("--shared_memory", action="store_true", help="also through shared memory")
    parser.add_argument(
        "--cuda_ipc", action="store_true", help="also from a GPU's memory (PyTorch)"
    )
    arguments = parser.parse_args()
    with quantd.connect(arguments.server, progress=False) as client:
        paths = ["gRPC"]
        if arguments.shared_memory:
            paths.append("shared memory")
        if arguments.cuda_ipc:
            paths.append("CUDA IPC")
        for path in paths:
            one_layer(client, path)
    model = Model(arguments.server, arguments.tokens, paths[-1])
    if arguments.blocks:
        model.through(arguments.blocks, arguments.in_flight)
    if arguments.again:
        model.again(arguments.again)


if __name__ == "__main__":
    main()
