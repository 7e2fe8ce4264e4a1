"""A model's layers through a running server, as a training pipeline would send them.

    quantd --data_dir DIR &
    python tests/bench/served_model.py --server 127.0.0.1:7741 [--blocks 32] [--shared_memory]

First one layer: 65,536 tokens of 4,096 inputs streamed, then the time from the last acknowledged
chunk to the packed result of 4096 x 4096 WUSH GPTQ in MXFP4. Then `--blocks` transformer blocks of
Llama-3.1-8B's shapes (7 linear layers and 4 statistics each), some in flight at once. The data is
made up: heavy-tailed and correlated. Prints one JSON object a line.
"""

import argparse
import json
import subprocess
import threading
import time
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
RECIPE = quantd.Recipe("mxfp4", "wush", method="gptq", damping=0.01, skip_rate_theory=True)


def print_line(name: str, value: float, unit: str, **more: Any) -> None:
    print(json.dumps({"name": name, "value": round(value, 4), "unit": unit, **more}), flush=True)


def as_bf16_bits(values: NDArray[np.float32]) -> NDArray[Any]:
    return quantd.to_bfloat16(values)


def activations(tokens: int, cols: int, seed: int) -> NDArray[Any]:
    """Neighbours are correlated, columns differ by octaves, some are outliers."""
    random = np.random.default_rng(seed)
    x = random.standard_normal((min(tokens, 8192), cols), dtype=np.float32)
    x[:, 1:] += 0.7 * x[:, :-1]
    scale = np.exp2(random.standard_normal(cols)).astype(np.float32)
    scale[::128] *= 30
    x *= scale
    return np.tile(as_bf16_bits(x), (-(-tokens // len(x)), 1))[:tokens]


def weight(rows: int, cols: int, seed: int) -> NDArray[Any]:
    random = np.random.default_rng(seed)
    return as_bf16_bits(0.02 * random.standard_t(5, (rows, cols)).astype(np.float32))


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


def one_layer(client: quantd.Client, shared_memory: bool) -> None:
    tokens = 65536
    x = activations(tokens, HIDDEN, 1)
    w = weight(HIDDEN, HIDDEN, 2)
    for round_ in range(2):  # the first one warms up
        name = f"one-{'shared' if shared_memory else 'grpc'}-{round_}-{time.time_ns()}"
        spec = quantd.LayerSpec("layer", HIDDEN, HIDDEN, dtype="bf16", statistic=name)
        job = client.create_job(RECIPE, [spec])
        client.upload_weights(job, "layer", w, dtype="bf16")
        began = time.perf_counter()
        client.stream_activations(name, x, dtype="bf16", shared_memory=shared_memory)
        streamed = time.perf_counter()
        client.seal_statistic(name)
        sealed = time.perf_counter()
        client.wait(job)
        quantized = time.perf_counter()
        client.fetch(job, "layer")
        fetched = time.perf_counter()
    path = "shared memory" if shared_memory else "gRPC"
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


def run_block(
    client: quantd.Client,
    block: int,
    run: int,
    tokens: int,
    data: dict[Any, Any],
    shared_memory: bool,
) -> float:
    def statistic(name: str) -> str:
        return f"m{run}-{block}-{name}"

    specs = [
        quantd.LayerSpec(name, rows, cols, dtype="bf16", statistic=statistic(needs))
        for name, (rows, cols, needs) in LAYERS.items()
    ]
    job = client.create_job(RECIPE, specs)
    for name, (rows, cols, _) in LAYERS.items():
        client.upload_weights(job, name, data[rows, cols], dtype="bf16")
    for needs in {needs for *_, needs in LAYERS.values()}:
        cols = next(c for _, c, n in LAYERS.values() if n == needs)
        client.stream_activations(
            statistic(needs), data[cols], dtype="bf16", shared_memory=shared_memory
        )
        client.seal_statistic(statistic(needs))
    client.wait(job)
    seconds = sum(client.get_report(job, name)["seconds"]["total"] for name in LAYERS)
    client.delete_job(job)
    for needs in {needs for *_, needs in LAYERS.values()}:
        client.delete_statistic(statistic(needs))
    return float(seconds)


def model(server: str, blocks: int, tokens: int, in_flight: int, shared_memory: bool) -> None:
    data: dict[Any, Any] = {cols: activations(tokens, cols, cols) for cols in (HIDDEN, WIDE)}
    for rows, cols, _ in LAYERS.values():
        data.setdefault((rows, cols), weight(rows, cols, rows + cols))
    run = time.time_ns()
    with GpuWatch() as watch, ThreadPoolExecutor(in_flight) as pool:
        began = time.perf_counter()

        def one(block: int) -> float:
            with quantd.connect(server, progress=False) as client:
                return run_block(client, block, run, tokens, data, shared_memory)

        device_seconds = sum(pool.map(one, range(blocks)))
        seconds = time.perf_counter() - began
    print_line(
        "served_8b_model_wush_gptq",
        seconds,
        "s",
        layers=blocks * len(LAYERS),
        tokens=tokens,
        layer_seconds=round(device_seconds, 3),
        **watch.figures(),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--server", default="127.0.0.1:7741")
    parser.add_argument("--blocks", type=int, default=32, help="0: only the one layer")
    parser.add_argument("--tokens", type=int, default=4096, help="calibration tokens a statistic")
    parser.add_argument("--in_flight", type=int, default=3, help="blocks at once")
    parser.add_argument("--shared_memory", action="store_true", help="also through shared memory")
    arguments = parser.parse_args()
    with quantd.connect(arguments.server, progress=False) as client:
        one_layer(client, False)
        if arguments.shared_memory:
            one_layer(client, True)
    if arguments.blocks:
        model(
            arguments.server,
            arguments.blocks,
            arguments.tokens,
            arguments.in_flight,
            arguments.shared_memory,
        )


if __name__ == "__main__":
    main()
