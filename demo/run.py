"""Quantizes all-MiniLM-L6-v2 through a running quantd server, and shows what it does to the model.

Calibration runs once: the real inputs of every linear layer are streamed to the server, which keeps
their second moments. All nine settings (3 formats x 3 transforms) then use the same statistics.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# One thread a process: the server needs the other cores, and waiting BLAS threads would spin.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import local_server
import numpy as np
import plot
import quantd
from model import Array, Encoder, LinearLayer
from numpy.typing import NDArray
from sentences import calibration_sentences, held_out_sentences
from tqdm import tqdm

FORMATS: tuple[quantd.recipe.Format, ...] = ("mxfp4", "nvfp4", "int4")
TRANSFORMS: tuple[quantd.recipe.Transform, ...] = ("identity", "hadamard", "wush")
METHOD: quantd.recipe.Method = "rtn"
FIGURES = (
    "relative_output_error_weight_only",
    "relative_output_error_weight_and_activation",
    "bits_per_weight",
)


@dataclass(frozen=True)
class Setting:
    """One way to quantize the model."""

    format: quantd.recipe.Format
    transform: quantd.recipe.Transform

    @property
    def recipe(self) -> quantd.Recipe:
        """What the server is asked for."""
        return quantd.Recipe(self.format, self.transform, METHOD)


def main() -> int:
    """Runs the demo; the exit status."""
    arguments = parse_arguments()
    encoder = Encoder()
    layers = list(encoder.layers.values())[: arguments.limit_layers]
    arguments.out.mkdir(parents=True, exist_ok=True)
    begin = time.monotonic()
    with running_server(keep=arguments.keep_server) as server:
        with quantd.connect(server.address, progress=False) as client:
            info = client.get_server_info()
            print(f"quantd {info.version} on {', '.join(d.description for d in info.devices)}")
            calibrate(client, encoder, layers)
            jobs = submit(client, layers)
            results, similarities = judge(client, encoder, jobs)
        write_summary(arguments.out, results, similarities)
        print_table(results, similarities)
        print_order(results)
        plot.draw(arguments.out / "plot.png", results, similarities)
        print(f"\nWritten to {arguments.out}: summary.json, embedding_similarity.json, plot.png")
        print(f"{time.monotonic() - begin:.0f} s in all.")
        if arguments.keep_server:
            print_farewell(server)
    return 0


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, prog="./dev demo")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("demo-output"),
        metavar="DIR",
        help="where summary.json and plot.png go (default: demo-output)",
    )
    parser.add_argument(
        "--limit-layers",
        type=int,
        default=None,
        metavar="N",
        help="quantize the first N of the 36 linear layers only",
    )
    parser.add_argument(
        "--keep-server",
        action="store_true",
        help="leave the server running at the end, with its jobs and statistics",
    )
    arguments = parser.parse_args()
    if arguments.limit_layers is not None and arguments.limit_layers < 1:
        parser.error("--limit-layers: expected at least 1")
    return arguments


@contextmanager
def running_server(keep: bool) -> Iterator[local_server.Server]:
    """A server with an empty data directory; both are gone afterwards unless kept."""
    server = local_server.start()
    kept = False
    try:
        yield server
        kept = keep
    except quantd.Unavailable as error:
        raise RuntimeError(f"{error}\nThe server's last words:\n{server.last_words()}") from error
    finally:
        if not kept:
            server.stop()
            shutil.rmtree(server.data_directory, ignore_errors=True)


def statistic_of(layer: LinearLayer) -> str:
    """Layers that read the same input (query, key, value) share its statistic."""
    return f"minilm.{layer.input_name}"


def calibrate(client: quantd.Client, encoder: Encoder, layers: Sequence[LinearLayer]) -> None:
    """Streams the layers' inputs, one statistic each, while the model runs."""
    sentences = calibration_sentences()
    tokens = sum(map(len, encoder.tokenize(sentences)))
    columns = {layer.input_name: layer.weight.shape[1] for layer in layers}
    statistics = {layer.input_name: statistic_of(layer) for layer in layers}
    with ExitStack() as stack:
        bar = stack.enter_context(tqdm(total=tokens, desc="calibrating", unit="token", leave=False))
        streams = {
            name: stack.enter_context(
                # The id also seeds the choice of tokens that are kept to measure on.
                client.open_activation_stream(
                    statistics[name], cols, dtype="bf16", stream_id="demo"
                )
            )
            for name, cols in columns.items()
        }

        def observe(input_name: str, rows: Array) -> None:
            if input_name in streams:
                streams[input_name].send(rows)

        begin = time.monotonic()
        encoder.encode(sentences, observe, progress=bar.update)
    for statistic in statistics.values():
        client.seal_statistic(statistic)
    print(
        f"Calibrated {len(statistics)} inputs on {len(sentences)} sentences,"
        f" {tokens:,} tokens: {time.monotonic() - begin:.1f} s"
    )


def submit(client: quantd.Client, layers: Sequence[LinearLayer]) -> dict[Setting, quantd.Job]:
    """One job a setting. Layers start as soon as their weights are complete."""
    begin = time.monotonic()
    specs = [
        quantd.LayerSpec(
            layer_id=layer.name,
            rows=layer.weight.shape[0],
            cols=layer.weight.shape[1],
            statistic=statistic_of(layer),
            fusion_group=layer.input_name if "attention.self" in layer.name else "",
        )
        for layer in layers
    ]
    jobs: dict[Setting, quantd.Job] = {}
    settings = [Setting(format, transform) for format in FORMATS for transform in TRANSFORMS]
    total = len(settings) * sum(layer.weight.nbytes for layer in layers)
    with tqdm(total=total, desc="uploading", unit="B", unit_scale=True, leave=False) as bar:
        for setting in settings:
            name = f"MiniLM {setting.format} {setting.transform}"
            job = client.create_job(setting.recipe, specs, display_name=name)
            for layer in layers:
                client.upload_weights(job, layer.name, layer.weight)
                bar.update(layer.weight.nbytes)
            jobs[setting] = job
    print(
        f"Uploaded {len(jobs)} jobs of {len(layers)} layers, {total / 1e6:.0f} MB:"
        f" {time.monotonic() - begin:.1f} s"
    )
    return jobs


def judge(
    client: quantd.Client, encoder: Encoder, jobs: Mapping[Setting, quantd.Job]
) -> tuple[list[dict[str, Any]], dict[plot.Setting, NDArray[np.floating[Any]]]]:
    """Fetches each job's results once it is done, and runs the quantized model on sentences that it
    was not calibrated on, while the server works on the jobs after it."""
    begin = time.monotonic()
    results: list[dict[str, Any]] = []
    similarities: dict[plot.Setting, NDArray[np.floating[Any]]] = {}
    sentences = held_out_sentences()
    exact = encoder.encode(sentences)
    total = sum(len(job.layers) for job in jobs.values())
    with tqdm(total=total, desc="quantizing", unit="layer", leave=False) as bar:
        for setting, job in jobs.items():
            bar.set_postfix_str(f"{setting.format} {setting.transform}")
            finished = wait(client, job, bar)
            quantized = {
                layer.layer_id: client.fetch(job, layer.layer_id) for layer in finished.layers
            }
            results += [
                {
                    "layer": layer.layer_id,
                    "format": setting.format,
                    "transform": setting.transform,
                    "method": METHOD,
                    **{figure: quantized[layer.layer_id].report[figure] for figure in FIGURES},
                    "seconds": layer.device_seconds,
                }
                for layer in finished.layers
            ]
            embeddings = encoder.encode(sentences, replace=quantized)
            similarities[setting.format, setting.transform] = np.sum(exact * embeddings, axis=1)
    print(
        f"Quantized and fetched {len(results)} layers, and ran {len(jobs)} quantized models on"
        f" {len(sentences)} held-out sentences: {time.monotonic() - begin:.1f} s"
    )
    return results, similarities


def wait(client: quantd.Client, job: quantd.Job, bar: tqdm[Any]) -> quantd.Job:
    """The job once it has succeeded; the bar moves with its layers."""
    before = bar.n
    for state in client.watch(job):
        bar.update(before + state.finished_layers - bar.n)
    return client.wait(job)  # has ended: raises where a layer failed


def write_summary(
    out: Path,
    results: list[dict[str, Any]],
    similarities: Mapping[plot.Setting, NDArray[np.floating[Any]]],
) -> None:
    """summary.json: a row a layer and setting; embedding_similarity.json: a row a setting."""
    (out / "summary.json").write_text(json.dumps(results, indent=1) + "\n")
    rows = [
        {
            "format": format,
            "transform": transform,
            "method": METHOD,
            "cosine_similarity_mean": float(values.mean()),
            "cosine_similarity_median": float(np.median(values)),
            "cosine_similarity_min": float(values.min()),
            "sentences": len(values),
        }
        for (format, transform), values in similarities.items()
    ]
    (out / "embedding_similarity.json").write_text(json.dumps(rows, indent=1) + "\n")


def print_table(
    results: Sequence[Mapping[str, Any]],
    similarities: Mapping[plot.Setting, NDArray[np.floating[Any]]],
) -> None:
    """One line a setting: errors are geometric means over the layers."""
    print(
        "\n                    relative output error, %     bits a   device   cosine similarity\n"
        "format  transform   weights   with activations   weight        s     mean       min\n"
        + "-"
        * 84
    )
    for (format, transform), values in similarities.items():
        rows = [r for r in results if (r["format"], r["transform"]) == (format, transform)]
        weight_only, both, bits = (np.array([r[figure] for r in rows]) for figure in FIGURES)
        print(
            f"{format:<7} {transform:<9} {100 * geometric_mean(weight_only):9.3f}"
            f" {100 * geometric_mean(both):18.3f} {bits.mean():8.3f}"
            f" {sum(r['seconds'] for r in rows):8.2f} {values.mean():8.5f} {values.min():9.5f}"
        )
        if transform == TRANSFORMS[-1]:
            print()


def print_order(results: Sequence[Mapping[str, Any]]) -> None:
    """On how many layers the transforms come out in the expected order, and where not."""
    figure = "relative_output_error_weight_and_activation"
    for format in FORMATS:
        errors: dict[str, dict[str, float]] = {}
        for row in results:
            if row["format"] == format:
                errors.setdefault(row["layer"], {})[row["transform"]] = row[figure]
        exceptions = {
            layer: e
            for layer, e in errors.items()
            if not e["wush"] < e["hadamard"] <= e["identity"]
        }
        below = sum(e["wush"] < min(e["hadamard"], e["identity"]) for e in errors.values())
        print(
            f"{format}: WUSH < Hadamard <= identity on {len(errors) - len(exceptions)} of"
            f" {len(errors)} layers (WUSH lowest on {below})"
        )
        if format == "mxfp4":
            for layer, e in exceptions.items():
                print(
                    f"  not on {layer}: "
                    + ", ".join(f"{transform} {100 * e[transform]:.3f} %" for transform in e)
                )


def geometric_mean(values: NDArray[np.float64]) -> float:
    """Of positive values."""
    return float(np.exp(np.log(values).mean()))


def print_farewell(server: local_server.Server) -> None:
    """How to go on with the server that was kept."""
    print(
        f"\nThe server goes on at {server.address} (process {server.process.pid});"
        f" metrics: http://{server.metrics_address}/metrics\n"
        f"  its data and log: {server.data_directory}\n"
        f"  to stop it: kill {server.process.pid}"
    )


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the server is stopped, too
    try:
        sys.exit(main())
    except (quantd.Error, RuntimeError, FileNotFoundError) as error:
        sys.exit(f"demo: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
