"""Jobs around plans: candidates for every weight, and the job that a plan describes."""

from __future__ import annotations

from typing import Any

import pytest

import quantd
from quantd.plan import default_rates, measuring_layers, planned_layers
from quantd.v1 import jobs_pb2, recipe_pb2

SOURCE = "tenants/lab/jobs/source"


def source() -> quantd.Job:
    """q and k are fused; up has a recipe of its own."""
    job = jobs_pb2.Job(
        name=SOURCE,
        recipe=quantd.Recipe("mxfp4", "wush", group_size=32).to_proto(),
        state=jobs_pb2.SUCCEEDED,
    )
    for layer_id, group in (("q", "qk"), ("k", "qk"), ("up", "")):
        job.layers.add(
            name=f"{SOURCE}/layers/{layer_id}",
            layer_id=layer_id,
            rows=8,
            cols=64,
            dtype=recipe_pb2.BF16,
            fusion_group=group,
            statistic="tenants/lab/statistics/s",
            second_moment_hat="tenants/lab/statistics/hat",
            cross_moment="tenants/lab/statistics/cross",
        )
    own = quantd.Recipe("int4", method="gptq", group_size=64, gptq=quantd.Gptq(act_order=True))
    job.layers[2].recipe.CopyFrom(own.to_proto())
    return quantd.Job.from_proto(job)


def layers(**options: Any) -> list[quantd.LayerSpec]:
    given = {"method": None, "rates": (), "formats": (), "transform": None} | options
    return measuring_layers(source(), **given)


def test_formats_take_the_layers_transforms_and_methods() -> None:
    made = layers(formats=("mxfp4", "int4"))
    assert [each.layer_id for each in made] == [
        *("q.mxfp4", "q.int4", "k.mxfp4", "k.int4", "up.mxfp4", "up.int4")
    ]
    assert [each.fusion_group for each in made] == [
        *("qk.mxfp4", "qk.int4", "qk.mxfp4", "qk.int4", "", "")
    ]
    assert made[0].weight_of == f"{SOURCE}/layers/q"
    assert (made[0].rows, made[0].cols, made[0].dtype) == (8, 64, "bf16")
    assert made[0].statistic == "tenants/lab/statistics/s"
    recipes = [each.recipe for each in made]
    assert all(recipe is not None for recipe in recipes)
    assert (recipes[0].transform, recipes[0].group_size) == ("wush", 32)  # type: ignore[union-attr]
    assert (recipes[1].transform, recipes[1].group_size) == ("wush", None)  # type: ignore[union-attr]
    assert recipes[4].method == "gptq"  # type: ignore[union-attr]
    assert recipes[5].gptq == quantd.Gptq(act_order=True)  # type: ignore[union-attr]
    assert recipes[5].group_size == 64  # type: ignore[union-attr]


def test_method_and_transform_can_be_overridden() -> None:
    for each in layers(formats=("mxfp4",), method="rtn", transform="hadamard"):
        assert each.recipe is not None
        assert (each.recipe.method, each.recipe.transform) == ("rtn", "hadamard")
        assert each.recipe.gptq is None


def test_rates_lie_around_the_budget() -> None:
    assert default_rates("watersic", 3) == (1, 2, 3, 4, 5)
    assert default_rates("watersic", 1) == (0.5, 1, 2, 3)
    assert default_rates("watersic", 15.5) == (13.5, 14.5, 15.5, 16)
    assert default_rates("higgs", 3) == (2, 3, 4)
    assert default_rates("gptq", 3) == ()
    made = layers(method="watersic", rates=(2, 2.5))
    assert [each.layer_id for each in made[:2]] == ["q.watersic-2", "q.watersic-2.5"]
    assert made[1].recipe == quantd.Recipe("entropy-coded", method="watersic", rate_bits=2.5)
    assert made[1].cross_moment == "tenants/lab/statistics/cross"
    assert layers(formats=("int4",))[0].cross_moment == "", "rtn would not read it"


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"rates": (2.0,)},
        {"method": "watersic", "rates": (2.0,), "formats": ("int4",)},
        {"formats": ("int4",), "rates": (2.0,)},
        {"formats": ("int4", "int4")},
    ],
)
def test_options_that_do_not_fit_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(quantd.InvalidArgument):
        layers(**options)


def test_a_plan_becomes_the_layers_of_its_source() -> None:
    message = jobs_pb2.Plan(parameters=1536, bits_per_weight=5, error=0.01, uniform_error=0.02)
    for layer_id in ("q", "k", "up"):
        message.layers.add(
            layer=f"{SOURCE}/layers/{layer_id}",
            parameters=512,
            recipe=quantd.Recipe("int8").to_proto(),
        )
    plan = quantd.Plan.from_proto(message, "tenants/lab/jobs/m")
    assert plan.gain == pytest.approx(2.0)
    assert plan.uniform_bits_per_weight is None
    assert plan.layers[0].uniform_error is None
    assert plan.layers[2].layer_id == "up"
    made = planned_layers(plan, [source()])
    assert [each.layer_id for each in made] == ["q", "k", "up"]
    assert made[1].fusion_group == "qk"
    assert made[1].weight_of == f"{SOURCE}/layers/k"
    assert made[2].recipe == plan.layers[2].recipe
    with pytest.raises(quantd.InvalidArgument, match="source/layers/q"):
        planned_layers(plan, [])
