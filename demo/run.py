"""Quantizes all-MiniLM-L6-v2 through a running quantd server, and shows what it does to the model.

Calibration runs once: the real inputs of every linear layer are streamed to the server, which keeps
their second moments. All settings then use the same statistics: 4-bit weights and activations by
round to nearest and by GPTQ with different transforms, and weights alone at 2, 3 and 4 bits by
round to nearest, HIGGS, GPTQ and WaterSIC.
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
from model import Array, Encoder, Linear, LinearLayer
from numpy.typing import NDArray
from sentences import calibration_sentences, held_out_sentences
from tqdm import tqdm

FIGURES = (
    "relative_output_error_weight_only",
    "relative_output_error_weight_and_activation",
    "bits_per_weight",
)
THEORY = ("waterfilling_limit_bits", "waterfilling_gap_bits")
#: Columns that share a scale at 2, 3 and 4 bits: GPTQ's usual choice, an eighth of a bit a weight.
GROUP_SIZE = 128
SCALE_BITS = 16 / GROUP_SIZE


@dataclass(frozen=True)
class Setting:
    """One way to quantize the model."""

    recipe: quantd.Recipe
    #: 2, 3 or 4 where weights alone are compared at equal bits.
    bits: int | None = None

    @property
    def format(self) -> str:
        """As in the table: methods with a format of their own have none."""
        return self.recipe.format or "-"

    @property
    def name(self) -> str:
        """Of its job."""
        parts = [self.recipe.method, self.recipe.format, self.recipe.transform]
        return "MiniLM " + " ".join(p for p in (*parts, self.bits and f"{self.bits} bits") if p)

    def model_layer(self, layer: quantd.QuantizedLayer) -> Linear:
        """What replaces a layer of the model: activations are quantized as the format says, or not
        at all where weights alone are compared."""
        if self.bits is None:
            return layer
        return lambda x: layer(x, quantize_activations=False)


FORMATS: tuple[quantd.recipe.Format, ...] = ("mxfp4", "nvfp4", "int4")
TRANSFORMS: tuple[quantd.recipe.Transform, ...] = ("identity", "hadamard", "wush")
INTEGERS: dict[int, quantd.recipe.Format] = {2: "int2", 3: "int3", 4: "int4"}

FOUR_BIT = [
    Setting(quantd.Recipe(format, transform, method))
    for method in ("rtn", "gptq")
    for format in FORMATS
    for transform in TRANSFORMS
]
WEIGHT_ONLY = [
    setting
    for bits, integer in INTEGERS.items()
    for setting in (
        Setting(quantd.Recipe(integer, group_size=GROUP_SIZE), bits),
        Setting(
            quantd.Recipe(method="higgs", rate_bits=bits, grid_dimension=2, group_size=GROUP_SIZE),
            bits,
        ),
        Setting(quantd.Recipe(integer, method="gptq", group_size=GROUP_SIZE), bits),
        Setting(quantd.Recipe(method="watersic", rate_bits=bits + SCALE_BITS), bits),
    )
]


Results = Sequence[Mapping[str, Any]]
#: Cosine similarity of each held-out sentence's embedding with that of the exact model.
Similarities = dict[Setting, NDArray[np.floating[Any]]]


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
        print_transform_order(results)
        print_method_order(results)
        draw(arguments.out, results, similarities)
        print(
            f"\nWritten to {arguments.out}: summary.json, embedding_similarity.json, plot.png,"
            " rate_distortion.png"
        )
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
    """One job a setting. Layers start as soon as their weights are complete: those of the first job
    are uploaded, the others take them from it."""
    begin = time.monotonic()
    jobs: dict[Setting, quantd.Job] = {}
    settings = FOUR_BIT + WEIGHT_ONLY
    total = sum(layer.weight.nbytes for layer in layers)
    first: quantd.Job | None = None
    for setting in settings:
        job = client.create_job(
            setting.recipe, layer_specs(layers, setting, first), display_name=setting.name
        )
        jobs[setting] = job
        if first is None:
            with tqdm(total=total, desc="uploading", unit="B", unit_scale=True, leave=False) as bar:
                for layer in layers:
                    client.upload_weights(job, layer.name, layer.weight)
                    bar.update(layer.weight.nbytes)
            first = job
    print(
        f"Uploaded {len(layers)} layers, {total / 1e6:.0f} MB, for {len(jobs)} jobs:"
        f" {time.monotonic() - begin:.1f} s"
    )
    return jobs


def layer_specs(
    layers: Sequence[LinearLayer], setting: Setting, source: quantd.Job | None
) -> list[quantd.LayerSpec]:
    """The layers of a job. Query, key and value share a transform and a global scale where there
    are such; weights alone are compared layer by layer at equal bits, so each stands for itself."""
    return [
        quantd.LayerSpec(
            layer_id=layer.name,
            rows=layer.weight.shape[0],
            cols=layer.weight.shape[1],
            statistic=statistic_of(layer),
            fusion_group=layer.input_name
            if setting.bits is None and "attention.self" in layer.name
            else "",
            weight_of=f"{source.name}/layers/{layer.name}" if source is not None else "",
        )
        for layer in layers
    ]


def judge(
    client: quantd.Client, encoder: Encoder, jobs: Mapping[Setting, quantd.Job]
) -> tuple[list[dict[str, Any]], Similarities]:
    """Fetches each job's results once it is done, and runs the quantized model on sentences that it
    was not calibrated on, while the server works on the jobs after it."""
    begin = time.monotonic()
    results: list[dict[str, Any]] = []
    similarities: Similarities = {}
    sentences = held_out_sentences()
    exact = encoder.encode(sentences)
    total = sum(len(job.layers) for job in jobs.values())
    with tqdm(total=total, desc="quantizing", unit="layer", leave=False) as bar:
        for setting, job in jobs.items():
            bar.set_postfix_str(setting.name.removeprefix("MiniLM "))
            finished = wait(client, job, bar)
            quantized = {
                layer.layer_id: client.fetch(job, layer.layer_id) for layer in finished.layers
            }
            results += [
                {
                    "layer": layer.layer_id,
                    "format": setting.format,
                    "transform": setting.recipe.transform,
                    "method": setting.recipe.method,
                    "weight_only_bits": setting.bits,
                    **{
                        figure: quantized[layer.layer_id].report[figure]
                        for figure in FIGURES + THEORY
                    },
                    "seconds": layer.device_seconds,
                }
                for layer in finished.layers
            ]
            embeddings = encoder.encode(
                sentences,
                replace={name: setting.model_layer(layer) for name, layer in quantized.items()},
            )
            similarities[setting] = np.sum(exact * embeddings, axis=1)
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


def write_summary(out: Path, results: list[dict[str, Any]], similarities: Similarities) -> None:
    """summary.json: a row a layer and setting; embedding_similarity.json: a row a setting."""
    (out / "summary.json").write_text(json.dumps(results, indent=1) + "\n")
    rows = [
        {
            "format": setting.format,
            "transform": setting.recipe.transform,
            "method": setting.recipe.method,
            "weight_only_bits": setting.bits,
            "cosine_similarity_mean": float(values.mean()),
            "cosine_similarity_median": float(np.median(values)),
            "cosine_similarity_min": float(values.min()),
            "sentences": len(values),
        }
        for setting, values in similarities.items()
    ]
    (out / "embedding_similarity.json").write_text(json.dumps(rows, indent=1) + "\n")


def rows_of(results: Results, setting: Setting) -> list[Mapping[str, Any]]:
    """The layers of one setting."""
    recipe = setting.recipe
    key = (setting.format, recipe.transform, recipe.method, setting.bits)
    return [
        row
        for row in results
        if (row["format"], row["transform"], row["method"], row["weight_only_bits"]) == key
    ]


def draw(out: Path, results: Results, similarities: Similarities) -> None:
    """Both pictures."""
    rtn = [s for s in FOUR_BIT if s.recipe.method == "rtn" and s in similarities]
    plot.draw(
        out / "plot.png",
        [row for setting in rtn for row in rows_of(results, setting)],
        {(s.format, s.recipe.transform): similarities[s] for s in rtn},
    )
    curves: dict[str, list[plot.Point]] = {}
    for setting in WEIGHT_ONLY:
        rows = rows_of(results, setting)
        points = curves.setdefault(setting.recipe.method, [])
        limits = [row["waterfilling_limit_bits"] for row in rows]
        points.append(
            plot.Point(
                bits=float(np.mean([row["bits_per_weight"] for row in rows])),
                error=geometric_mean(column(rows, FIGURES[0])),
                similarity=float(np.median(similarities[setting])),
                limit_bits=float(np.mean(limits)) if None not in limits else None,
            )
        )
    plot.draw_rate_distortion(out / "rate_distortion.png", curves)


def print_table(results: Results, similarities: Similarities) -> None:
    """One line a setting: errors are geometric means over the layers."""
    print(
        "\n                             relative output error, %     bits a   device"
        "   cosine similarity\n"
        "method   format  transform   weights   with activations   weight        s"
        "     mean       min\n" + "-" * 93
    )
    group: tuple[str, int | None] | None = None
    for setting, values in similarities.items():
        rows = rows_of(results, setting)
        if group not in (None, (setting.format if setting.bits is None else "", setting.bits)):
            print()
        group = (setting.format if setting.bits is None else "", setting.bits)
        both = (
            f"{100 * geometric_mean(column(rows, FIGURES[1])):18.3f}"
            if setting.bits is None
            else f"{'-':>18}"
        )
        print(
            f"{setting.recipe.method:<8} {setting.format:<7} {setting.recipe.transform:<9}"
            f" {100 * geometric_mean(column(rows, FIGURES[0])):9.3f} {both}"
            f" {column(rows, FIGURES[2]).mean():8.3f}"
            f" {sum(r['seconds'] for r in rows):8.2f} {values.mean():8.5f} {values.min():9.5f}"
        )


def print_transform_order(results: Results) -> None:
    """On how many layers the transforms come out in the expected order, and where not."""
    print()
    for method in ("rtn", "gptq"):
        for format in FORMATS:
            errors = {
                setting.recipe.transform: by_layer(results, setting, FIGURES[1])
                for setting in FOUR_BIT
                if setting.format == format and setting.recipe.method == method
            }
            below = {layer: e < errors["hadamard"][layer] for layer, e in errors["wush"].items()}
            lowest = sum(
                e == min(values[layer] for values in errors.values())
                for layer, e in errors["wush"].items()
            )
            print(
                f"{method} {format}: WUSH below Hadamard on {sum(below.values())} of {len(below)}"
                f" layers, lowest of the three on {lowest}"
            )
            for layer in [layer for layer, is_below in below.items() if not is_below]:
                print(
                    f"  not on {layer}: "
                    + ", ".join(f"{t} {100 * e[layer]:.3f} %" for t, e in errors.items())
                )


def print_method_order(results: Results) -> None:
    """WaterSIC beside GPTQ at equal bits."""
    for bits in INTEGERS:
        errors = {
            setting.recipe.method: by_layer(results, setting, FIGURES[0])
            for setting in WEIGHT_ONLY
            if setting.bits == bits
        }
        ratios = np.array([e / errors["gptq"][layer] for layer, e in errors["watersic"].items()])
        print(
            f"{bits + SCALE_BITS:.3f} bits, weights alone: WaterSIC below GPTQ on"
            f" {np.sum(ratios < 1)} of {len(ratios)} layers; error of WaterSIC / GPTQ"
            f" {geometric_mean(ratios):.2f}, at most {ratios.max():.2f}"
        )


def by_layer(results: Results, setting: Setting, figure: str) -> dict[str, float]:
    """A figure of one setting by the layer's name."""
    return {row["layer"]: row[figure] for row in rows_of(results, setting)}


def column(rows: Sequence[Mapping[str, Any]], figure: str) -> NDArray[np.float64]:
    """A figure of each row."""
    return np.array([row[figure] for row in rows], np.float64)


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
