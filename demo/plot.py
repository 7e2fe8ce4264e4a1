"""The demo's pictures: what each transform does to every layer, and to the model's sentences; and
what each method makes of 2, 3 and 4 bits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from numpy.typing import NDArray

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

# Okabe and Ito's colours, which everybody can tell apart.
COLOURS = {"identity": "#9a9a9a", "hadamard": "#e69f00", "wush": "#0072b2"}
MARKERS = {"identity": "o", "hadamard": "D", "wush": "o"}
LABELS = {"identity": "no transform", "hadamard": "Hadamard", "wush": "WUSH"}
FORMAT_TITLES = {"mxfp4": "MXFP4", "nvfp4": "NVFP4", "int4": "INT4"}
KINDS = {
    "attention.self.query": "q",
    "attention.self.key": "k",
    "attention.self.value": "v",
    "attention.output.dense": "o",
    "intermediate.dense": "up",
    "output.dense": "down",
}

SIMILARITY_TICKS = (0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.998, 0.999)
SMALLEST_LOSS = 1e-6  # what a logarithmic axis can show of 1 - similarity

#: (format, transform) -> one value a layer or a sentence.
Setting = tuple[str, str]


def draw(
    path: Path,
    results: Sequence[Mapping[str, Any]],
    similarities: Mapping[Setting, NDArray[np.floating[Any]]],
) -> None:
    """Writes the plot.

    Args:
        path: of the PNG file.
        results: as in summary.json.
        similarities: cosine similarity of each held-out sentence's embedding with fp32.

    """
    formats = list(dict.fromkeys(row["format"] for row in results))
    transforms = list(dict.fromkeys(row["transform"] for row in results))
    layers = list(dict.fromkeys(row["layer"] for row in results))
    error = {
        (row["format"], row["transform"], row["layer"]): row[
            "relative_output_error_weight_and_activation"
        ]
        for row in results
    }

    figure = plt.figure(figsize=(15, 9.6), layout=ConstrainedLayoutEngine(h_pad=0.12, w_pad=0.08))
    grid = figure.add_gridspec(2, len(formats), height_ratios=[1.25, 1])
    first: Axes | None = None
    for column, format in enumerate(formats):
        axes = figure.add_subplot(grid[0, column], sharey=first)
        errors = {
            transform: np.array([error[format, transform, layer] for layer in layers], float)
            for transform in transforms
        }
        _draw_layers(axes, format, layers, errors, labelled=first is None)
        first = first or axes
    assert first is not None
    every = np.array([value for value in error.values() if value > 0])
    first.set_ylim(every.min() / 1.4, every.max() * 2.2)
    first.legend(loc="upper left", frameon=False, ncols=len(transforms), handletextpad=0.2)

    first = None
    for column, format in enumerate(formats):
        axes = figure.add_subplot(grid[1, column], sharey=first, sharex=first)
        loss = {transform: 1 - similarities[format, transform] for transform in transforms}
        _draw_sentences(axes, format, loss, labelled=first is None)
        first = first or axes
    assert first is not None
    every = np.maximum(1 - np.concatenate(list(similarities.values())), SMALLEST_LOSS)
    first.set_xlim(every.max() * 1.2, every.min() / 1.2)

    noun = "layer" if len(layers) == 1 else "layers"
    sentences = len(next(iter(similarities.values())))
    _save(
        figure,
        path,
        f"all-MiniLM-L6-v2, {len(layers)} linear {noun} with 4-bit weights and activations,"
        f" {sentences} held-out sentences",
    )


@dataclass(frozen=True)
class Point:
    """One setting of the whole model: means over its layers."""

    bits: float  # a weight, everything stored included
    error: float  # relative output error, weights alone
    similarity: float  # median cosine similarity with the exact model
    limit_bits: float | None  # what no code can go below at this error


METHOD_COLOURS = {"rtn": "#9a9a9a", "higgs": "#009e73", "gptq": "#e69f00", "watersic": "#0072b2"}
METHOD_LABELS = {
    "rtn": "round to nearest",
    "higgs": "HIGGS (no data)",
    "gptq": "GPTQ",
    "watersic": "WaterSIC",
}


def draw_rate_distortion(path: Path, curves: Mapping[str, Sequence[Point]]) -> None:
    """Writes the plot of error and of the model's similarity over bits a weight, by method, with
    the limit of rate-distortion theory beside the errors."""
    figure, (errors, sentences) = plt.subplots(
        1, 2, figsize=(13, 5.6), layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.08)
    )
    for method, points in curves.items():
        style = {"color": METHOD_COLOURS[method], "marker": "o", "lw": 2, "ms": 6}
        bits = [point.bits for point in points]
        errors.plot(bits, [point.error for point in points], **style)
        sentences.plot(bits, [1 - point.similarity for point in points], **style)
        for axes, value in ((errors, points[-1].error), (sentences, 1 - points[-1].similarity)):
            axes.annotate(
                METHOD_LABELS[method],
                (bits[-1], value),
                xytext=(8, 0),
                textcoords="offset points",
                va="center",
                color=METHOD_COLOURS[method],
                fontweight="bold",
            )
    limits = [(p.limit_bits, p.error) for p in curves["watersic"] if p.limit_bits is not None]
    if limits:
        errors.plot(*zip(*limits, strict=True), color="black", ls="--", lw=1.5)
        errors.annotate(
            "limit",
            limits[0],
            xytext=(-6, 0),
            textcoords="offset points",
            ha="right",
            va="center",
        )
    for axes in (errors, sentences):
        axes.set_yscale("log")
        axes.set_xlabel("bits a weight, scales and tables included")
        axes.margins(x=0.14)
        _finish(axes)
        axes.grid(axis="y", color="#eeeeee")
        axes.yaxis.set_minor_locator(NullLocator())
    errors.set_ylabel("relative output error of a layer (geometric mean)")
    errors.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    errors.yaxis.set_major_formatter(FuncFormatter(_percent))
    sentences.yaxis.set_major_locator(FixedLocator([1 - tick for tick in SIMILARITY_TICKS]))
    sentences.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{1 - value:.5g}"))
    sentences.set_ylabel("embeddings' cosine similarity with fp32 (median; down is better)")
    _save(figure, path, "all-MiniLM-L6-v2, weights alone quantized")


def _save(figure: Figure, path: Path, title: str) -> None:
    figure.suptitle(title, fontsize=15, fontweight="bold", x=0.012, ha="left")
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _draw_layers(
    axes: Axes,
    format: str,
    layers: Sequence[str],
    errors: Mapping[str, NDArray[np.float64]],
    labelled: bool,
) -> None:
    """One column of dots a layer; a line joins the best and the worst."""
    positions = _positions(layers)
    stacked = np.vstack(list(errors.values()))
    axes.vlines(positions, stacked.min(0), stacked.max(0), color="#dddddd", lw=2, zorder=1)
    for transform, values in errors.items():
        axes.scatter(
            positions,
            values,
            s=34 if MARKERS[transform] == "o" else 24,
            marker=MARKERS[transform],
            color=COLOURS[transform],
            label=LABELS[transform],
            zorder=3 if transform == "wush" else 2,
        )
    axes.set_yscale("log")
    axes.set_xticks(positions, [_kind(layer) for layer in layers], fontsize=7.5, rotation=90)
    axes.tick_params(axis="x", pad=4)
    for block, centre in _block_centres(layers, positions):
        axes.annotate(
            f"block {block}",
            (centre, 0),
            xycoords=("data", "axes fraction"),
            xytext=(0, -38),
            textcoords="offset points",
            ha="center",
            fontsize=8,
            color="#555555",
        )
    means = {t: float(np.exp(np.mean(np.log(values)))) for t, values in errors.items()}
    axes.set_title(_title(format, means), loc="left", fontsize=11)
    _finish(axes)
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(_percent))
    if labelled:
        axes.set_ylabel("relative output error of a layer\n(weights and activations quantized)")
    else:
        axes.tick_params(labelleft=False)


def _draw_sentences(
    axes: Axes, format: str, loss: Mapping[str, NDArray[np.floating[Any]]], labelled: bool
) -> None:
    """Each sentence a dot, the middle half a box, the median written out."""
    jitter = np.random.default_rng(0)
    upwards = list(loss.items())[::-1]
    for position, (transform, values) in enumerate(upwards):
        values = np.maximum(values, SMALLEST_LOSS)
        colour = COLOURS[transform]
        heights = position + jitter.uniform(-0.24, 0.24, len(values))
        axes.scatter(values, heights, s=13, color=colour, alpha=0.45, lw=0)
        low, median, high = np.quantile(values, [0.25, 0.5, 0.75])
        axes.hlines(position, low, high, color=colour, lw=9, alpha=0.35)
        axes.vlines(median, position - 0.34, position + 0.34, color=colour, lw=2.5)
        axes.annotate(
            f"{1 - median:.4f}",
            (median, position + 0.36),
            ha="center",
            va="bottom",
            fontsize=10,
            fontweight="bold",
            color=colour,
        )
    names = [LABELS[transform] for transform, _ in upwards]
    axes.set_yticks(range(len(names)), names if labelled else [""] * len(names))
    axes.set_ylim(-0.55, len(names) - 0.25)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator([1 - tick for tick in SIMILARITY_TICKS]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("embeddings' cosine similarity with fp32 (median; right is better)")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{1 - value:.5g}"))
    axes.set_title(f"{FORMAT_TITLES.get(format, format)}: the whole model", loc="left", fontsize=11)
    _finish(axes)


def _finish(axes: Axes) -> None:
    axes.grid(axis="both" if axes.get_xscale() == "log" else "y", color="#eeeeee", zorder=0)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(length=0, which="both")


def _title(format: str, means: Mapping[str, float]) -> str:
    title = FORMAT_TITLES.get(format, format)
    if "wush" in means and "identity" in means:
        title += f": error with WUSH {means['wush'] / means['identity'] - 1:+.0%}"
        if "hadamard" in means:
            title += f", with Hadamard {means['hadamard'] / means['identity'] - 1:+.0%}"
    return title


def _percent(value: float, _: int) -> str:
    return f"{value * 100:g} %"


def _kind(layer: str) -> str:
    return KINDS.get(layer.split(".", 3)[-1], layer)


def _block(layer: str) -> int:
    return int(layer.split(".")[2])


def _positions(layers: Sequence[str]) -> NDArray[np.float64]:
    """Layers side by side, with a gap between blocks."""
    return np.array([index + 1.2 * _block(layer) for index, layer in enumerate(layers)], float)


def _block_centres(
    layers: Sequence[str], positions: NDArray[np.float64]
) -> list[tuple[int, float]]:
    blocks = np.array([_block(layer) for layer in layers])
    return [(int(b), float(positions[blocks == b].mean())) for b in np.unique(blocks)]
