"""How many bits each weight of a model gets, and the jobs around that."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from quantd.errors import InvalidArgument
from quantd.recipe import Format, Method, Recipe, Transform
from quantd.resources import Job, Layer, LayerSpec
from quantd.v1 import jobs_pb2

# Methods that bring their own format and take a rate.
_RATED: dict[str, Format] = {"watersic": "entropy-coded", "higgs": "gaussian-grid"}


@dataclass(frozen=True)
class PlannedLayer:
    """What one weight gets.

    layer: full name of the layer whose weight it is.
    candidate: full name of the measured layer that was chosen, or of the next lower rate.
    recipe: what to quantize it with.
    bits_per_weight, error: predicted, of the weight or as the means of its fusion group.
    uniform_error: with the same choice for all weights.
    """

    layer: str
    candidate: str
    parameters: int
    recipe: Recipe
    bits_per_weight: float
    error: float
    uniform_error: float | None

    @property
    def layer_id(self) -> str:
        """The last segment of the layer's name."""
        return self.layer.rsplit("/", 1)[-1]


@dataclass(frozen=True)
class Plan:
    """The choice of least error for a budget of bits; means over all parameters.

    uniform_*: the best single choice for all weights within the same budget; None: none fits.
    slope: by how much the error would fall per further bit.
    error_bound: no choice among the candidates has less error within the budget.
    least_bits_per_weight, most_bits_per_weight: what the candidates reach.
    error_figure: which figure of the reports `error` is.
    failed_candidates: left out.
    measuring_job: full name of the job that measured the candidates.
    """

    layers: tuple[PlannedLayer, ...]
    parameters: int
    bits_per_weight: float
    error: float
    uniform_bits_per_weight: float | None
    uniform_error: float | None
    slope: float
    error_bound: float
    least_bits_per_weight: float
    most_bits_per_weight: float
    error_figure: str
    failed_candidates: int
    measuring_job: str

    @property
    def gain(self) -> float | None:
        """The uniform choice's error over the plan's."""
        if self.uniform_error is None or self.error == 0:
            return None
        return self.uniform_error / self.error

    @classmethod
    def from_proto(cls, plan: jobs_pb2.Plan, measuring_job: str) -> Plan:
        """The value of a message."""

        def optional(message: Any, field: str) -> float | None:
            return getattr(message, field) if message.HasField(field) else None

        return cls(
            layers=tuple(
                PlannedLayer(
                    layer=layer.layer,
                    candidate=layer.candidate,
                    parameters=layer.parameters,
                    recipe=Recipe.from_proto(layer.recipe),
                    bits_per_weight=layer.bits_per_weight,
                    error=layer.error,
                    uniform_error=optional(layer, "uniform_error"),
                )
                for layer in plan.layers
            ),
            parameters=plan.parameters,
            bits_per_weight=plan.bits_per_weight,
            error=plan.error,
            uniform_bits_per_weight=optional(plan, "uniform_bits_per_weight"),
            uniform_error=optional(plan, "uniform_error"),
            slope=plan.slope,
            error_bound=plan.error_bound,
            least_bits_per_weight=plan.least_bits_per_weight,
            most_bits_per_weight=plan.most_bits_per_weight,
            error_figure=plan.error_figure,
            failed_candidates=plan.failed_candidates,
            measuring_job=measuring_job,
        )


def default_rates(method: Method | None, bits_per_weight: float) -> tuple[float, ...]:
    """Rates around a budget; higgs has only three, and other methods have none."""
    if method == "higgs":
        return (2.0, 3.0, 4.0)
    if method != "watersic":
        return ()
    least = min(0.5, bits_per_weight)
    return tuple(
        sorted({min(max(bits_per_weight + offset, least), 16.0) for offset in range(-2, 3)})
    )


def measuring_layers(
    source: Job,
    *,
    method: Method | None,
    rates: Sequence[float],
    formats: Sequence[Format],
    transform: Transform | None,
) -> list[LayerSpec]:
    """Every layer of `source` with each candidate, on the weights that it has.

    Raises:
        InvalidArgument: options that do not fit each other.

    """
    _check_options(method, rates, formats)
    layers = []
    for layer in source.layers:
        own = layer.recipe or source.recipe
        assert own is not None
        for label, recipe in _candidates(own, method, rates, formats, transform):
            spec = _ask(layer, recipe)
            layers.append(
                dataclasses.replace(
                    spec,
                    layer_id=f"{spec.layer_id}.{label}",
                    fusion_group=f"{spec.fusion_group}.{label}" if spec.fusion_group else "",
                )
            )
    return layers


def planned_layers(plan: Plan, sources: Sequence[Job]) -> list[LayerSpec]:
    """The layers of a plan, in its order, as the jobs that they come from describe them.

    Raises:
        InvalidArgument: a layer of the plan is in none of the jobs.

    """
    known = {layer.name: layer for source in sources for layer in source.layers}
    for planned in plan.layers:
        if planned.layer not in known:
            raise InvalidArgument(f"plan: {planned.layer} does not exist any more")
    return [_ask(known[planned.layer], planned.recipe) for planned in plan.layers]


def _ask(layer: Layer, recipe: Recipe) -> LayerSpec:
    """What a new job asks for to quantize the weight of a layer once more.

    Statistics that the recipe does not read would be refused.
    """
    reads_residual = recipe.method == "watersic"
    reads_drift = reads_residual or (recipe.gptq is not None and recipe.gptq.asymmetric)
    return LayerSpec(
        layer_id=layer.layer_id,
        rows=layer.rows,
        cols=layer.cols,
        dtype=layer.dtype,
        statistic=layer.statistic,
        fusion_group=layer.fusion_group,
        second_moment_hat=layer.second_moment_hat if reads_drift else "",
        cross_moment=layer.cross_moment if reads_drift else "",
        residual_moment=layer.residual_moment if reads_residual else "",
        recipe=recipe,
        weight_of=layer.name,
    )


def _candidates(
    own: Recipe,
    method: Method | None,
    rates: Sequence[float],
    formats: Sequence[Format],
    transform: Transform | None,
) -> Iterator[tuple[str, Recipe]]:
    if method in _RATED:
        base = own if own.method == method else Recipe(_RATED[method], method=method)
        for rate in rates:
            yield f"{method}-{rate:g}", dataclasses.replace(base, rate_bits=rate)
    for name in formats:
        yield name, _with_format(own, name, method, transform)


def _with_format(
    own: Recipe, name: Format, method: Method | None, transform: Transform | None
) -> Recipe:
    rated = own.method in _RATED
    chosen = method or ("rtn" if rated else own.method)
    recipe = dataclasses.replace(
        own,
        method=chosen,
        transform=transform or own.transform,
        gptq=own.gptq if chosen == "gptq" else None,
        damping=None if rated else own.damping,
        rate_bits=None,
        grid_dimension=None,
        format=name,
    )
    if recipe.transform != own.transform:
        recipe = dataclasses.replace(recipe, transform_block_size=None)
    if name == own.format:
        return recipe
    # What was chosen for another format gives way to the defaults of this one.
    return dataclasses.replace(
        recipe, scale_rule=None, granularity=None, group_size=None, transform_block_size=None
    )


def _check_options(
    method: Method | None, rates: Sequence[float], formats: Sequence[Format]
) -> None:
    if method in _RATED and formats:
        raise InvalidArgument(f"formats: expected none with {method}, came {list(formats)}")
    if method not in _RATED and rates:
        raise InvalidArgument("rates: expected none without method watersic or higgs")
    if method not in _RATED and not formats:
        raise InvalidArgument("formats: expected at least one, or method watersic or higgs")
    if len(set(rates)) != len(rates) or len(set(formats)) != len(formats):
        raise InvalidArgument("expected each rate and format once")
