"""Decoding of integers under the service's entropy code, as docs/formats.md describes it.

Interleaved rANS: each segment has 32 states that take turns and share one sequence of 16-bit
words. NumPy decodes the same turn of all states of all segments at a time.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from quantd.errors import DataLoss

LANES = 32
MAX_SEGMENT_VALUES = 1 << 18
MAX_CLASSES = 16
MAGIC = b"QDZ1"
PRECISIONS = range(8, 16)
SPLITS = range(2, 11)
LEAST_STATE = 1 << 16
MAX_EXPONENT = 18

_HEADER = struct.Struct("<4sBBHIIQQ")
_STATE_BYTES = 4 * LANES


@dataclass(frozen=True)
class _Header:
    precision: int
    classes: int
    segment_values: int
    cols: int
    count: int
    checksum: int

    @property
    def segments(self) -> int:
        return -(-self.count // self.segment_values)

    @property
    def class_bytes(self) -> int:
        size = self.classes + ((self.cols + 1) // 2 if self.classes > 1 else 0)
        return size + size % 2


@dataclass(frozen=True)
class _Tables:
    """What slots and tokens mean. Tokens of all classes have one numbering."""

    class_of_column: NDArray[np.uint32]
    token_of_slot: NDArray[np.uint16]  # of class k: from k << precision on
    start: NDArray[np.uint32]
    frequency: NDArray[np.uint32]
    base: NDArray[np.uint32]
    raw_bits: NDArray[np.uint32]
    is_escape: NDArray[np.bool_]


def decode_integers(tensors: Mapping[str, NDArray[Any]], rows: int, cols: int) -> NDArray[np.int32]:
    """The rows x cols integers of `z_stream` and its companions.

    Raises:
        DataLoss: the tensors do not fit each other, or the checksum does not fit the integers.

    """
    stream = np.ascontiguousarray(tensors["z_stream"], np.uint8)
    offsets = tensors["z_segment_offset"].astype(np.int64).reshape(-1, 2)
    escapes = tensors["z_escape"].astype(np.int32)
    header = _parse_header(stream.tobytes(), rows, cols)
    words = _check_layout(header, stream, offsets, len(escapes))
    values = np.zeros(0, np.int32)
    if header.count:
        tables = _read_tables(header, stream, tensors["z_frequency"])
        values = _decode_segments(header, tables, words, offsets, escapes)
    elif tensors["z_frequency"].size:
        raise DataLoss("z_frequency: expected none for no values")
    if xxhash.xxh3_64_intdigest(values.astype("<i4").tobytes()) != header.checksum:
        raise DataLoss("z_stream: the checksum of the decoded values does not fit")
    return values.reshape(rows, cols)


def _parse_header(stream: bytes, rows: int, cols: int) -> _Header:
    if len(stream) < _HEADER.size:
        raise DataLoss(f"z_stream: expected {_HEADER.size} bytes of header, came {len(stream)}")
    magic, precision, classes, lanes, segment_values, columns, count, checksum = _HEADER.unpack(
        stream[: _HEADER.size]
    )
    known = (
        magic == MAGIC
        and precision in PRECISIONS
        and lanes == LANES
        and segment_values in range(LANES, MAX_SEGMENT_VALUES + 1, LANES)
        and classes in (range(1, MAX_CLASSES + 1) if count else (0,))
    )
    if not known:
        raise DataLoss("z_stream: not a header of version QDZ1")
    if (count, columns) != (rows * cols, cols):
        raise DataLoss(
            f"z_stream: expected {rows * cols} values in {cols} columns, came {count} in {columns}"
        )
    return _Header(precision, classes, segment_values, columns, count, checksum)


def _check_layout(
    header: _Header, stream: NDArray[np.uint8], offsets: NDArray[np.int64], escapes: int
) -> NDArray[np.uint16]:
    """The words behind the header; offsets rise to what is there."""
    if len(offsets) != header.segments + 1 or offsets[0].any():
        raise DataLoss(
            f"z_segment_offset: expected {header.segments + 1} pairs from 0, 0 on, "
            f"came {len(offsets)}"
        )
    size = np.diff(offsets, axis=0)
    if (size[:, 0] < 2 * LANES).any() or (size[:, 1] < 0).any():
        raise DataLoss("z_segment_offset: expected every segment to have its states")
    begin = _HEADER.size + header.class_bytes
    if len(stream) != begin + 2 * offsets[-1, 0] or escapes != offsets[-1, 1]:
        raise DataLoss(
            f"z_segment_offset: ends at {offsets[-1].tolist()} words and escapes; "
            f"came {len(stream) - begin} bytes and {escapes} escapes"
        )
    return stream[begin:].view("<u2")


def _read_tables(
    header: _Header, stream: NDArray[np.uint8], frequencies: NDArray[np.uint16]
) -> _Tables:
    splits = stream[_HEADER.size : _HEADER.size + header.classes]
    if not all(int(split) in SPLITS for split in splits):
        raise DataLoss(f"z_stream: expected splits in 2..10, came {splits.tolist()}")
    class_of_column = np.zeros(header.cols, np.uint32)
    if header.classes > 1:
        begin = _HEADER.size + header.classes
        nibbles = stream[begin : begin + (header.cols + 1) // 2]
        class_of_column[0::2] = nibbles & 15
        class_of_column[1::2] = nibbles[: header.cols // 2] >> 4
        if (class_of_column >= header.classes).any():
            raise DataLoss(f"z_stream: expected classes of columns below {header.classes}")
    frequency = frequencies.astype(np.uint32)
    # A table ends with the number that makes its sum 2^precision.
    whole = 1 << header.precision
    ends = np.cumsum(frequency, dtype=np.int64)
    last = np.searchsorted(ends, whole * np.arange(1, header.classes + 1))
    if len(ends) == 0 or ends[-1] != whole * header.classes or last[-1] != len(ends) - 1:
        raise DataLoss(f"z_frequency: expected {header.classes} tables that sum up to {whole}")
    if (ends[last] != whole * np.arange(1, header.classes + 1)).any():
        raise DataLoss(f"z_frequency: expected every table to sum up to {whole}")
    base, raw_bits, is_escape = [], [], []
    for split, begin, end in zip(splits, [0, *(last[:-1] + 1)], last + 1, strict=True):
        meaning = _alphabet(int(split), int(end - begin))
        base.append(meaning[0])
        raw_bits.append(meaning[1])
        is_escape.append(np.arange(end - begin) == 0)
    return _Tables(
        class_of_column=class_of_column,
        token_of_slot=np.repeat(np.arange(len(frequency), dtype=np.uint16), frequency),
        start=((ends - frequency) % whole).astype(np.uint32),
        frequency=frequency,
        base=np.concatenate(base),
        raw_bits=np.concatenate(raw_bits),
        is_escape=np.concatenate(is_escape),
    )


def _alphabet(split: int, size: int) -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
    """The least zigzag value and the number of raw bits of the first `size` tokens."""
    buckets = 4 * (MAX_EXPONENT + 1 - split)
    if size > 1 + (1 << split) + buckets:
        raise DataLoss(f"z_frequency: too many tokens for split {split}: {size}")
    bucket = np.arange(buckets, dtype=np.uint32)
    raw_bits = split - 2 + bucket // 4
    direct = np.arange(1 << split, dtype=np.uint32)
    base = np.concatenate([[0], direct, (4 + bucket % 4) << raw_bits])
    bits = np.concatenate([[0], np.zeros_like(direct), raw_bits])
    return base[:size].astype(np.uint32), bits[:size].astype(np.uint32)


class _Segments:
    """States and places of all segments; rows of the arrays are segments, columns lanes."""

    def __init__(self, words: NDArray[np.uint16], offsets: NDArray[np.int64]) -> None:
        self._words = words.astype(np.uint32)
        self.place = offsets[:-1, 0].copy()
        at = self.place[:, None] + np.arange(2 * LANES)
        pairs = self._words[at]
        self.states = pairs[:, 0::2] | (pairs[:, 1::2] << 16)
        self.place += 2 * LANES

    def refill(self, rows: slice, states: NDArray[np.uint32], needed: NDArray[np.bool_]) -> None:
        """Gives the next words to the states that need one, lane by lane, and stores them all."""
        rank = np.cumsum(needed, axis=1)
        # Beyond the end any word will do: the place then is not where the segment ends.
        at = self.place[rows, None] + rank - 1
        word = self._words.take(at, mode="clip")
        self.states[rows] = np.where(needed, (states << np.uint32(16)) | word, states)
        self.place[rows] += rank[:, -1]


def _decode_segments(
    header: _Header,
    tables: _Tables,
    words: NDArray[np.uint16],
    offsets: NDArray[np.int64],
    escapes: NDArray[np.int32],
) -> NDArray[np.int32]:
    count, turns = header.segments, header.segment_values // LANES
    turns = min(turns, -(-header.count // LANES))
    tokens = np.zeros((count, turns, LANES), np.uint16)
    raw = np.zeros((count, turns, LANES), np.uint32)
    segments = _Segments(words, offsets)
    lane = np.arange(LANES)
    first = np.arange(count)[:, None] * header.segment_values + lane
    in_last = header.count - (count - 1) * header.segment_values  # values of the last segment
    shift, mask = np.uint32(header.precision), np.uint32((1 << header.precision) - 1)
    for turn in range(turns):
        left = in_last - turn * LANES
        rows = slice(0, count if left > 0 else count - 1)
        states = segments.states[rows]
        slot = states & mask
        at = slot
        if header.classes > 1:
            classes = tables.class_of_column[(first[rows] + turn * LANES) % header.cols]
            at = slot + (classes << shift)
        token = tables.token_of_slot[at]
        decoded = tables.frequency[token] * (states >> shift) + slot - tables.start[token]
        takes_part = None
        if 0 < left < LANES:  # lanes of the last segment that have no value any more
            takes_part = np.ones(states.shape, np.bool_)
            takes_part[-1, left:] = False
            decoded = np.where(takes_part, decoded, states)
        segments.refill(rows, decoded, decoded < LEAST_STATE)
        tokens[rows, turn] = token
        bits = tables.raw_bits[token]
        if not bits.any():
            continue
        if takes_part is not None:
            bits = np.where(takes_part, bits, np.uint32(0))
        states = segments.states[rows]
        raw[rows, turn] = states & ((np.uint32(1) << bits) - np.uint32(1))
        rest = states >> bits
        segments.refill(rows, rest, rest < LEAST_STATE)
    if (segments.place != offsets[1:, 0]).any() or (segments.states != LEAST_STATE).any():
        wrong = (segments.place != offsets[1:, 0]) | (segments.states != LEAST_STATE).any(axis=1)
        raise DataLoss(f"z_stream: segment {int(np.flatnonzero(wrong)[0])} does not decode")
    tokens = tokens.reshape(-1)[: header.count]
    zigzag = tables.base[tokens] | raw.reshape(-1)[: header.count]
    values = (zigzag >> np.uint32(1)).astype(np.int32) ^ -(zigzag & np.uint32(1)).astype(np.int32)
    escaped = np.flatnonzero(tables.is_escape[tokens])
    places = np.searchsorted(
        escaped, np.minimum(np.arange(count + 1) * header.segment_values, header.count)
    )
    if (places != offsets[:, 1]).any():
        raise DataLoss("z_escape: the number of escapes does not fit the stream")
    values[escaped] = escapes
    return values
