"""The Prometheus text format, as far as tests need it."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

_SAMPLE = re.compile(r"^([a-zA-Z_:][\w:]*)(?:\{(.*)\})? (\S+)$")
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


@dataclass
class Scrape:
    """One read of /metrics."""

    samples: dict[str, list[tuple[dict[str, str], float]]] = field(default_factory=dict)
    help: dict[str, str] = field(default_factory=dict)
    types: dict[str, str] = field(default_factory=dict)

    def value(self, name: str, **labels: str) -> float:
        """Sum of the samples of `name` with these labels; 0 where there is none."""
        return sum(
            value
            for sample, value in self.samples.get(name, [])
            if all(sample.get(key) == wanted for key, wanted in labels.items())
        )

    def labels(self, name: str, label: str) -> set[str]:
        return {sample[label] for sample, _ in self.samples.get(name, []) if label in sample}


def parse(text: str) -> Scrape:
    scrape = Scrape()
    for line in text.splitlines():
        if line.startswith("# HELP "):
            name, _, rest = line[7:].partition(" ")
            scrape.help[name] = rest
        elif line.startswith("# TYPE "):
            name, _, rest = line[7:].partition(" ")
            scrape.types[name] = rest
        elif line:
            match = _SAMPLE.match(line)
            assert match, f"not a sample: {line!r}"
            name, labels, value = match.groups()
            scrape.samples.setdefault(name, []).append(
                (dict(_LABEL.findall(labels or "")), float(value))
            )
    return scrape
