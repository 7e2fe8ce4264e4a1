"""A quantized layer: packed tensors, transform and report; and the smallest module that runs it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
from numpy.typing import NDArray

from quantd import dtypes, formats
from quantd.errors import InvalidArgument
from quantd.grid import decode_grid
from quantd.lattice import decode_lattice
from quantd.recipe import Recipe

#: Tensors of a result file, without the layer's prefix.
TENSOR_NAMES = (
    "weight_packed",
    "weight_scale",
    "weight_global_scale",
    "weight_shape",
    "input_transform",
    "input_global_scale",
    "z_stream",
    "z_segment_offset",
    "z_frequency",
    "z_escape",
    "row_scale",
    "col_scale",
    "dead_columns",
)
#: Methods whose weights have no activation format: activations stay as they are.
WEIGHT_ONLY = ("watersic", "higgs")


@dataclass(frozen=True)
class QuantizedLayer:
    """One layer's result. Arrays are read-only; everything else follows from them.

    name: the layer's id.
    recipe: with every default filled in.
    tensors: by the names in TENSOR_NAMES; E8M0 and E4M3 are uint8 codes, bfloat16 is uint16 bits.
    report: the error report, by the names of the API; None for a figure that was not measured.
    metadata: of the result file: recipe, digests, versions.

    A quantized layer computes y = W' q(T x): `transform_activations` is T,
    `fake_quantize_activations` is q, `decode_weight` is W'. Calling the layer does all three.
    """

    name: str
    recipe: Recipe
    tensors: Mapping[str, NDArray[Any]]
    report: Mapping[str, Any]
    metadata: Mapping[str, str]

    @property
    def shape(self) -> tuple[int, int]:
        """Rows R (outputs) and columns C (inputs)."""
        rows, cols = (int(n) for n in self._tensor("weight_shape"))
        return rows, cols

    @cached_property
    def transform(self) -> NDArray[np.float32] | None:
        """T as C/B x B x B blocks, x' = T x; None for the identity."""
        transform = self.tensors.get("input_transform")
        if transform is None:
            return None
        if transform.dtype == np.uint16:
            transform = dtypes.from_bfloat16(transform)
        return transform.astype(np.float32)

    @property
    def bits_per_weight(self) -> float:
        """Of codes, scales and transform together, as reported."""
        return float(self.report["bits_per_weight"])

    def decode_weight(self) -> NDArray[np.float32]:
        """W', R x C: the decoded codes, which the transformed inputs see."""
        return self._decoded

    def dequantize(self) -> NDArray[np.float32]:
        """W' T, R x C: the matrix that the original inputs see."""
        decoded = self._decode()
        transform = self.transform
        if transform is None:
            return decoded.astype(np.float32)
        blocks, size, _ = transform.shape
        by_block = decoded.reshape(-1, blocks, size).transpose(1, 0, 2)
        product = by_block @ transform.astype(np.float64)
        return product.transpose(1, 0, 2).reshape(decoded.shape).astype(np.float32)

    def transform_activations(self, x: NDArray[Any]) -> NDArray[Any]:
        """T x for every row of x (tokens x C); float64 in gives float64 out, all else float32."""
        if x.ndim != 2 or x.shape[1] != self.shape[1]:
            came = " x ".join(map(str, x.shape))
            raise InvalidArgument(f"activations: expected tokens x {self.shape[1]}, came {came}")
        dtype = np.float64 if x.dtype == np.float64 else np.float32
        x = x.astype(dtype, copy=False)
        transform = self.transform
        if transform is None:
            return x
        blocks, size, _ = transform.shape
        by_block = x.reshape(-1, blocks, size).transpose(1, 2, 0)
        product: NDArray[Any] = transform.astype(dtype) @ by_block
        return product.transpose(2, 0, 1).reshape(x.shape)

    def fake_quantize_activations(self, x: NDArray[Any]) -> NDArray[Any]:
        """Transformed activations (tokens x C), rounded to the format's values.

        Scales are dynamic: from each token's groups, and where the format has a global scale, one
        for all of x. The result has the dtype of x. Formats of weights alone leave x as it is.
        """
        if self.recipe.method in WEIGHT_ONLY:
            return x
        return formats.fake_quantize(x, self.recipe).astype(x.dtype, copy=False)

    def __call__(self, x: NDArray[Any], quantize_activations: bool = True) -> NDArray[Any]:
        """The layer's output without bias: tokens x C to tokens x R."""
        transformed = self.transform_activations(x)
        if quantize_activations:
            transformed = self.fake_quantize_activations(transformed)
        output: NDArray[Any] = transformed @ self._decoded.astype(transformed.dtype, copy=False).T
        return output

    @cached_property
    def _decoded(self) -> NDArray[np.float32]:
        return self._decode().astype(np.float32)

    def _decode(self) -> NDArray[np.float64]:
        if self.recipe.method == "watersic":
            return decode_lattice(self.tensors, *self.shape)
        if self.recipe.method == "higgs":
            return decode_grid(self.recipe, self.tensors, *self.shape)
        global_scale = self.tensors.get("weight_global_scale")
        return formats.decode(
            self.recipe,
            self._tensor("weight_packed"),
            self._tensor("weight_scale"),
            None if global_scale is None else float(global_scale.reshape(-1)[0]),
        )

    def _tensor(self, name: str) -> NDArray[Any]:
        if name not in self.tensors:
            raise InvalidArgument(f"{self.name}: the result has no tensor {name}")
        return self.tensors[name]


def parse(data: bytes, report: Mapping[str, Any], layer: str | None = None) -> QuantizedLayer:
    """A layer from the bytes of a result file (safetensors).

    Args:
        data: the whole file.
        report: the layer's error report.
        layer: which one, where the file holds several.

    Raises:
        InvalidArgument: no valid result file, or without that layer.

    """
    try:
        entries = safetensors.deserialize(data)
    except Exception as error:  # the reader has its own exception type
        raise InvalidArgument(f"not a safetensors file: {error}") from error
    by_layer: dict[str, dict[str, NDArray[Any]]] = {}
    for name, entry in entries:
        prefix, _, tensor = name.rpartition(".")
        by_layer.setdefault(prefix, {})[tensor] = dtypes.decode(
            bytes(entry["data"]), entry["dtype"], tuple(entry["shape"])
        )
    if layer is None and len(by_layer) == 1:
        layer = next(iter(by_layer))
    if layer not in by_layer:
        raise InvalidArgument(
            f"layer: expected one of {', '.join(sorted(by_layer))}, came {layer!r}"
        )
    metadata = _metadata(data)
    return QuantizedLayer(
        name=layer,
        recipe=Recipe.from_json(metadata.get("recipe", "")),
        tensors=by_layer[layer],
        report=dict(report),
        metadata=metadata,
    )


def load(result: str | Path, report: str | Path | None = None) -> QuantizedLayer:
    """A layer from files: `result.safetensors`, and `report.json` beside it where it exists."""
    result = Path(result)
    report_path = Path(report) if report is not None else result.with_name("report.json")
    figures = json.loads(report_path.read_text()) if report_path.exists() else {}
    return parse(result.read_bytes(), figures)


def _metadata(data: bytes) -> dict[str, str]:
    """The file's `__metadata__`. The reader has already checked the header."""
    size = int.from_bytes(data[:8], "little")
    metadata: dict[str, str] = json.loads(data[8 : 8 + size]).get("__metadata__", {})
    return metadata
