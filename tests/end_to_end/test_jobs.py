"""Jobs: what CreateJob takes and refuses, and a job's life from there on."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from quantd.v1 import calibration_pb2, jobs_pb2, recipe_pb2

from .refusal import refused, unharmed
from .server_process import Server, eventually
from .wire import (
    F32,
    F64,
    activations_like,
    create_job,
    delete_job,
    error_report,
    gaussian,
    get_job,
    layer,
    list_artifacts,
    result_tensors,
    seal,
    sealed_statistic,
    stream_activations,
    upload,
    wait_for_job,
    wait_for_state,
    watch,
    works,
)

Recipe = recipe_pb2.Recipe
ROWS, COLS = 16, 64
WEIGHT = gaussian(ROWS, COLS, seed=21)


@pytest.fixture(scope="module")
def statistic(server: Server) -> str:
    return sealed_statistic(server.api, "shared", activations_like(128, COLS, 22)).name


@pytest.fixture(autouse=True)
def no_jobs_left(server: Server) -> Iterator[None]:
    yield
    listed = server.api.jobs.ListJobs(
        jobs_pb2.ListJobsRequest(parent="tenants/default", page_size=1000)
    )
    for job in listed.jobs:
        delete_job(server.api, job.name)


def _request(server: Server, job: jobs_pb2.Job, **more: Any) -> jobs_pb2.CreateJobResponse:
    return server.api.jobs.CreateJob(
        jobs_pb2.CreateJobRequest(parent="tenants/default", job=job, **more)
    )


# CreateJob --------------------------------------------------------------------------------------

REFUSED_JOBS: dict[str, tuple[dict[str, Any], str, list[object]]] = {
    # recipe and layer fields, the field that must be named, what the message must say
    "no format": ({"recipe": {}}, "format", ["MXFP4"]),
    "unknown format": ({"recipe": {"format": 42}}, "format", [42]),
    "unknown transform": ({"recipe": {"transform": 42}}, "transform", [42]),
    "unknown method": ({"recipe": {"method": 42}}, "method", [42]),
    "unknown solver": ({"recipe": {"solver": 42}}, "solver", [42]),
    "unknown scale rule": ({"recipe": {"scale_rule": 42}}, "scale_rule", [42]),
    "unknown granularity": ({"recipe": {"granularity": 42}}, "granularity", [42]),
    "unknown dtype": ({"layer": {"dtype": 42}}, "dtype", [42]),
    "no dtype": ({"layer": {"dtype": 0}}, "dtype", []),
    "no rows": ({"layer": {"rows": 0}}, "rows", [0]),
    "negative rows": ({"layer": {"rows": -1}}, "rows", [-1]),
    "no cols": ({"layer": {"cols": 0}}, "cols", [0]),
    "rows above the limit": ({"layer": {"rows": 2**20 + 1}}, "rows", [2**20, 2**20 + 1]),
    "cols above the limit": ({"layer": {"cols": 2**20 + 32}}, "cols", [2**20, 2**20 + 32]),
    "sizes that overflow": ({"layer": {"rows": 2**62, "cols": 2**62}}, "rows", [2**62]),
    "cols do not fit mxfp4": ({"layer": {"cols": 48}}, "cols", [32, 48]),
    "cols do not fit nvfp4": (
        {"recipe": {"format": recipe_pb2.NVFP4}, "layer": {"cols": 24}},
        "cols",
        [16, 24],
    ),
    "cols do not fit the group": (
        {"recipe": {"format": recipe_pb2.INT4, "group_size": 128}, "layer": {"cols": 192}},
        "cols",
        [128, 192],
    ),
    "cols do not fit the transform": (
        {
            "recipe": {
                "format": recipe_pb2.INT8,
                "granularity": recipe_pb2.ROW,
                "transform": recipe_pb2.HADAMARD,
                "transform_block_size": 128,
            },
            "layer": {"cols": 64},
        },
        "cols",
        [128, 64],
    ),
    "mxfp4 with another group": ({"recipe": {"group_size": 16}}, "group_size", [32, 16]),
    "nvfp4 with another group": (
        {"recipe": {"format": recipe_pb2.NVFP4, "group_size": 32}},
        "group_size",
        [16, 32],
    ),
    "int4 with a tiny group": (
        {"recipe": {"format": recipe_pb2.INT4, "group_size": 8}},
        "group_size",
        [16, 256, 8],
    ),
    "int4 with a huge group": (
        {"recipe": {"format": recipe_pb2.INT4, "group_size": 512}, "layer": {"cols": 512}},
        "group_size",
        [256, 512],
    ),
    "negative group": ({"recipe": {"group_size": -32}}, "group_size", [-32]),
    "hadamard of 48": (
        {
            "recipe": {
                "format": recipe_pb2.INT4,
                "group_size": 48,
                "transform": recipe_pb2.HADAMARD,
            },
            "layer": {"cols": 96},
        },
        "transform_block_size",
        [48],
    ),
    "transform block too large": (
        {
            "recipe": {"transform": recipe_pb2.HADAMARD, "transform_block_size": 512},
            "layer": {"cols": 512},
        },
        "transform_block_size",
        [256, 512],
    ),
    "scale rule of another format": (
        {"recipe": {"scale_rule": recipe_pb2.GAUSSIAN_MSE}},
        "scale_rule",
        [],
    ),
    "granularity of another format": (
        {"recipe": {"granularity": recipe_pb2.ROW}},
        "granularity",
        [],
    ),
    "damping zero": (
        {"recipe": {"transform": recipe_pb2.WUSH, "damping": 0.0}},
        "damping",
        [0],
    ),
    "damping above one": (
        {"recipe": {"transform": recipe_pb2.WUSH, "damping": 2.0}},
        "damping",
        [2],
    ),
    "damping not a number": (
        {"recipe": {"transform": recipe_pb2.WUSH, "damping": float("nan")}},
        "damping",
        ["nan"],
    ),
    "wush without a statistic": (
        {"recipe": {"transform": recipe_pb2.WUSH}, "layer": {"statistic": ""}},
        "statistic",
        [],
    ),
}


@pytest.mark.parametrize("validate_only", [False, True], ids=["create", "validate_only"])
@pytest.mark.parametrize("what", REFUSED_JOBS)
def test_refused_before_anything_is_uploaded(
    server: Server, statistic: str, what: str, validate_only: bool
) -> None:
    fields, field, says = REFUSED_JOBS[what]
    recipe = {"format": recipe_pb2.MXFP4, **fields.get("recipe", {})}
    if fields.get("recipe") == {}:
        recipe = {}
    described = {
        "layer_id": "w",
        "rows": ROWS,
        "cols": COLS,
        "dtype": F32,
        "statistic": statistic if recipe.get("transform") == recipe_pb2.WUSH else "",
        **fields.get("layer", {}),
    }
    job = jobs_pb2.Job(recipe=Recipe(**recipe), layers=[jobs_pb2.Layer(**described)])
    with unharmed(server), refused("INVALID_ARGUMENT", field=field, says=says):
        _request(server, job, validate_only=validate_only)


def test_refusal_names_the_layer(server: Server) -> None:
    """Of many layers, the one that does not fit, by its place in the request."""
    layers = [layer(f"l{n}", ROWS, COLS) for n in range(5)]
    layers[3].cols = 40
    with unharmed(server), refused("INVALID_ARGUMENT") as refusal:
        create_job(server.api, layers)
    assert any("layers[3]" in path for path in refusal.fields), refusal


def test_refusal_names_a_layers_own_recipe(server: Server) -> None:
    layers = [layer("a", ROWS, COLS), layer("b", ROWS, COLS, recipe=Recipe(format=42))]
    with unharmed(server), refused("INVALID_ARGUMENT", field="format") as refusal:
        create_job(server.api, layers)
    assert any("layers[1].recipe" in path for path in refusal.fields), refusal


def test_refusal_of_a_recipe_that_no_layer_uses(server: Server) -> None:
    """It would be stored beside the layers' own, and not be readable."""
    unused = Recipe(
        format=recipe_pb2.ENTROPY_CODED,
        method=recipe_pb2.WATERSIC,
        rate_bits=3,
        transform=recipe_pb2.HADAMARD,
    )
    own = [layer("a", ROWS, COLS, recipe=Recipe(format=recipe_pb2.MXFP4))]
    with unharmed(server), refused("INVALID_ARGUMENT", field="transform") as refusal:
        create_job(server.api, own, unused)
    assert any("job.recipe" in path for path in refusal.fields), refusal


@pytest.mark.parametrize("method", [recipe_pb2.GPTQ, recipe_pb2.WATERSIC])
def test_methods_that_this_server_does_not_list(server: Server, method: int) -> None:
    from quantd.v1 import server_pb2

    info = server.api.server.GetServerInfo(server_pb2.GetServerInfoRequest())
    recipe = Recipe(format=recipe_pb2.INT4, method=method)
    if method == recipe_pb2.WATERSIC:
        recipe.format = recipe_pb2.ENTROPY_CODED
        recipe.rate_bits = 3
    if method in info.methods:  # and needs a statistic
        name = recipe_pb2.Method.Name(method).lower()
        says = ["statistic", name]
        with unharmed(server), refused("INVALID_ARGUMENT", field="statistic", says=says):
            create_job(server.api, [layer("w", ROWS, COLS)], recipe)
        return
    with unharmed(server), refused("UNIMPLEMENTED", says=["recipe", "method", "rtn"]):
        create_job(server.api, [layer("w", ROWS, COLS)], recipe)


def test_no_layers(server: Server) -> None:
    with unharmed(server), refused("INVALID_ARGUMENT", field="layers"):
        create_job(server.api, [])


def test_no_job(server: Server) -> None:
    with unharmed(server), refused("INVALID_ARGUMENT"):
        server.api.jobs.CreateJob(jobs_pb2.CreateJobRequest(parent="tenants/default"))


def test_two_layers_of_one_name(server: Server) -> None:
    with unharmed(server), refused("INVALID_ARGUMENT", field="layer_id", says=["twice"]):
        create_job(server.api, [layer("twice", ROWS, COLS), layer("twice", ROWS, COLS)])


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"display_name": "x" * 257}, "display_name"),
        ({"display_name": "bell \a"}, "display_name"),
    ],
    ids=["long", "control"],
)
def test_malformed_display_name(server: Server, changes: dict[str, str], field: str) -> None:
    job = jobs_pb2.Job(
        recipe=Recipe(format=recipe_pb2.MXFP4), layers=[layer("w", ROWS, COLS)], **changes
    )
    with unharmed(server), refused("INVALID_ARGUMENT", field=field):
        _request(server, job)


def test_malformed_request_id(server: Server) -> None:
    with unharmed(server), refused("INVALID_ARGUMENT", field="request_id", says=[64, 65]):
        create_job(server.api, [layer("w", ROWS, COLS)], request_id="r" * 65)


def test_malformed_fusion_group(server: Server) -> None:
    with unharmed(server), refused("INVALID_ARGUMENT", field="fusion_group"):
        create_job(server.api, [layer("w", ROWS, COLS, fusion_group="g" * 257)])


def test_duplicate_job(server: Server, unique: str) -> None:
    job = create_job(server.api, [layer("w", ROWS, COLS)], job_id=unique)
    with unharmed(server), refused("ALREADY_EXISTS", says=[job.name]):
        create_job(server.api, [layer("w", ROWS, COLS)], job_id=unique)
    delete_job(server.api, job.name)
    create_job(server.api, [layer("w", ROWS, COLS)], job_id=unique)


def test_server_chooses_an_id(server: Server) -> None:
    names = {create_job(server.api, [layer("w", ROWS, COLS)]).name for _ in range(3)}
    assert len(names) == 3
    assert all(name.startswith("tenants/default/jobs/") for name in names)


def test_request_id_is_idempotent(server: Server, unique: str) -> None:
    """A retry, however often and from however many threads, makes one job."""
    made: list[str] = []

    def attempt() -> None:
        api = server.connect()
        made.append(create_job(api, [layer("w", ROWS, COLS)], request_id=unique).name)

    threads = [threading.Thread(target=attempt) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 8
    assert len(set(made)) == 1
    other = create_job(server.api, [layer("w", ROWS, COLS)], request_id=unique + "-other")
    assert other.name not in made


def test_validate_only(server: Server, unique: str) -> None:
    job = jobs_pb2.Job(recipe=Recipe(format=recipe_pb2.INT4), layers=[layer("w", 1024, 2048)])
    with unharmed(server):
        response = _request(server, job, job_id=unique, validate_only=True)
    # Codes alone are half a byte a weight.
    assert 1024 * 2048 // 2 < response.estimate.output_bytes < 1024 * 2048
    assert response.estimate.peak_bytes > 1024 * 2048 * 4
    assert 0 < response.estimate.device_seconds < 600
    with refused("NOT_FOUND"):
        get_job(server.api, f"tenants/default/jobs/{unique}")


@pytest.mark.parametrize(
    ("given", "resolved"),
    [
        (
            Recipe(format=recipe_pb2.MXFP4),
            {
                "transform": recipe_pb2.IDENTITY,
                "method": recipe_pb2.RTN,
                "granularity": recipe_pb2.GROUP,
                "group_size": 32,
                "transform_block_size": 32,
            },
        ),
        (
            Recipe(format=recipe_pb2.NVFP4, transform=recipe_pb2.HADAMARD),
            {"group_size": 16, "transform_block_size": 16, "granularity": recipe_pb2.GROUP},
        ),
        (
            Recipe(format=recipe_pb2.INT4),
            {"scale_rule": recipe_pb2.ABSMAX, "group_size": 32, "granularity": recipe_pb2.GROUP},
        ),
        (
            Recipe(format=recipe_pb2.FP8, transform=recipe_pb2.RANDOM, seed=5),
            {"granularity": recipe_pb2.ROW, "transform_block_size": 32, "seed": 5},
        ),
    ],
    ids=["mxfp4", "nvfp4", "int4", "fp8"],
)
def test_defaults_are_echoed(
    server: Server, given: recipe_pb2.Recipe, resolved: dict[str, int]
) -> None:
    recipe = create_job(server.api, [layer("w", ROWS, COLS)], given).recipe
    assert {field: getattr(recipe, field) for field in resolved} == resolved
    assert recipe.format == given.format
    assert recipe.scale_rule != recipe_pb2.SCALE_RULE_UNSPECIFIED


def test_new_job(server: Server, unique: str) -> None:
    job = create_job(server.api, [layer("a", ROWS, COLS), layer("b", 8, 32)], job_id=unique)
    assert job.name == f"tenants/default/jobs/{unique}"
    assert [x.name for x in job.layers] == [f"{job.name}/layers/a", f"{job.name}/layers/b"]
    assert job.state == jobs_pb2.ACCEPTING
    assert [x.state for x in job.layers] == [jobs_pb2.LAYER_WAITING] * 2
    assert job.create_time.seconds > 1_600_000_000
    assert not job.HasField("end_time")
    assert get_job(server.api, job.name) == job


def test_output_only_fields_are_ignored(server: Server, unique: str) -> None:
    given = jobs_pb2.Job(
        name="tenants/somebody/jobs/else",
        recipe=Recipe(format=recipe_pb2.MXFP4),
        state=jobs_pb2.SUCCEEDED,
        finished_layers=7,
        layers=[layer("w", ROWS, COLS, state=jobs_pb2.LAYER_SUCCEEDED, progress=1.0)],
    )
    job = _request(server, given, job_id=unique).job
    assert (job.name, job.state) == (f"tenants/default/jobs/{unique}", jobs_pb2.ACCEPTING)
    assert (job.finished_layers, job.layers[0].progress) == (0, 0.0)
    assert job.layers[0].state == jobs_pb2.LAYER_WAITING


# Running ----------------------------------------------------------------------------------------


def test_layer_runs_when_its_inputs_are_there(server: Server, unique: str) -> None:
    """Weights and statistic in either order; a layer does not wait for the job's others."""
    calibration = server.api.statistic_name(unique)
    job = create_job(
        server.api,
        [
            layer("weights-first", ROWS, COLS, statistic=calibration),
            layer("weights-last", ROWS, COLS, statistic=calibration),
            layer("no-statistic", ROWS, COLS),
        ],
        job_id=unique,
    )
    first, last, bare = (described.name for described in job.layers)

    def states() -> list[int]:
        return [described.state for described in get_job(server.api, job.name).layers]

    upload(server.api, bare, WEIGHT)
    eventually(lambda: states()[2] == jobs_pb2.LAYER_SUCCEEDED, "the bare layer is done")
    upload(server.api, first, WEIGHT)
    stream_activations(server.api, calibration, activations_like(64, COLS, 1))
    assert states()[:2] == [jobs_pb2.LAYER_WAITING] * 2  # the statistic is not sealed
    seal(server.api, calibration)
    eventually(lambda: states()[0] == jobs_pb2.LAYER_SUCCEEDED, "the first layer is done")
    assert states()[1] == jobs_pb2.LAYER_WAITING
    assert get_job(server.api, job.name).finished_layers == 2
    upload(server.api, last, WEIGHT)
    ended = wait_for_job(server.api, job.name)
    assert ended.state == jobs_pb2.SUCCEEDED
    assert ended.finished_layers == 3
    assert ended.end_time.seconds >= ended.create_time.seconds
    assert all(x.progress == 1.0 for x in ended.layers)
    assert all(x.device_seconds > 0 for x in ended.layers)
    assert result_tensors(server.api, job.name, "weights-first") == result_tensors(
        server.api, job.name, "weights-last"
    )


def test_watch_shows_every_step_in_order(server: Server, statistic: str, unique: str) -> None:
    layers = [layer(f"l{n}", ROWS, COLS, statistic=statistic) for n in range(4)]
    job = create_job(server.api, layers, Recipe(format=recipe_pb2.MXFP4), job_id=unique)
    responses = watch(server.api, job.name)
    seen = [next(iter(responses))]  # at once, before anything changes
    assert seen[0].job.state == jobs_pb2.ACCEPTING
    for described in job.layers:
        upload(server.api, described.name, WEIGHT)
    seen += list(responses)  # ends by itself with the job
    assert seen[-1].job.state == jobs_pb2.SUCCEEDED
    assert seen[-1].job.finished_layers == 4
    finished = [response.job.finished_layers for response in seen]
    assert finished == sorted(finished)
    order = [
        jobs_pb2.LAYER_WAITING,
        jobs_pb2.LAYER_QUEUED,
        jobs_pb2.LAYER_RUNNING,
        jobs_pb2.LAYER_SUCCEEDED,
    ]
    for index in range(4):
        states = [order.index(response.job.layers[index].state) for response in seen]
        assert states == sorted(states), f"layer {index} went back: {states}"
        progress = [response.job.layers[index].progress for response in seen]
        assert progress == sorted(progress)
        assert all(0 <= p <= 1 for p in progress)
    assert all(response.queue_position >= 0 for response in seen)
    assert seen[-1].queue_position == 0


def test_watch_of_an_ended_job(server: Server, unique: str) -> None:
    job = create_job(server.api, [layer("w", ROWS, COLS)], job_id=unique)
    server.api.jobs.CancelJob(jobs_pb2.CancelJobRequest(name=job.name))
    responses = list(watch(server.api, job.name))
    assert [r.job.state for r in responses] == [jobs_pb2.CANCELLED]


def test_watch_ends_when_the_job_is_deleted(server: Server, unique: str) -> None:
    job = create_job(server.api, [layer("w", ROWS, COLS)], job_id=unique)
    responses = watch(server.api, job.name)
    next(iter(responses))
    delete_job(server.api, job.name)
    with refused("NOT_FOUND", says=[job.name]):
        last = list(responses)
        # Also in order: a last message that says cancelled, and a normal end.
        assert last and last[-1].job.state == jobs_pb2.CANCELLED
        get_job(server.api, job.name)


def test_statistic_that_does_not_fit_the_layer(server: Server, unique: str) -> None:
    """Found at once where the statistic exists, and else when it has come."""
    narrow = sealed_statistic(server.api, f"{unique}-narrow", activations_like(32, 32, 1)).name
    with unharmed(server), refused("INVALID_ARGUMENT", field="statistic", says=[32, COLS]):
        create_job(server.api, [layer("w", ROWS, COLS, statistic=narrow)])

    later = server.api.statistic_name(f"{unique}-later")
    job = create_job(server.api, [layer("w", ROWS, COLS, statistic=later)], job_id=unique)
    upload(server.api, job.layers[0].name, WEIGHT)
    sealed_statistic(server.api, f"{unique}-later", activations_like(32, 32, 1))
    ended = wait_for_job(server.api, job.name)
    assert ended.state == jobs_pb2.FAILED
    assert ended.layers[0].state == jobs_pb2.LAYER_FAILED
    message = ended.layers[0].error.message
    assert "32" in message and str(COLS) in message, message
    with refused("FAILED_PRECONDITION"):
        error_report(server.api, job.name, "w")
    works(server.api)


def test_block_diagonal_statistic_where_a_full_one_is_needed(server: Server, unique: str) -> None:
    blocks = sealed_statistic(
        server.api,
        unique,
        activations_like(64, COLS, 1),
        layout=calibration_pb2.BLOCK_DIAGONAL,
        block_size=32,
    ).name
    recipe = Recipe(
        format=recipe_pb2.MXFP4, transform=recipe_pb2.WUSH, solver=recipe_pb2.CONDITIONAL
    )
    with unharmed(server), refused("INVALID_ARGUMENT", field="statistic", says=["full"]):
        create_job(server.api, [layer("w", ROWS, COLS, statistic=blocks)], recipe)
    # The marginal solver needs no more than the blocks.
    recipe.solver = recipe_pb2.MARGINAL
    job = create_job(server.api, [layer("w", ROWS, COLS, statistic=blocks)], recipe)
    upload(server.api, job.layers[0].name, WEIGHT)
    assert wait_for_job(server.api, job.name).state == jobs_pb2.SUCCEEDED


def test_failed_layer_leaves_the_others(server: Server, unique: str) -> None:
    """One layer's statistic does not fit; the rest of the job is done all the same."""
    later = server.api.statistic_name(unique)
    job = create_job(
        server.api,
        [layer("bad", ROWS, COLS, statistic=later), layer("good", ROWS, COLS)],
        job_id=unique,
    )
    for described in job.layers:
        upload(server.api, described.name, WEIGHT)
    sealed_statistic(server.api, unique, activations_like(32, 32, 1))
    ended = wait_for_job(server.api, job.name)
    assert ended.state == jobs_pb2.FAILED
    assert [x.state for x in ended.layers] == [jobs_pb2.LAYER_FAILED, jobs_pb2.LAYER_SUCCEEDED]
    assert set(list_artifacts(server.api, job.name)) == {
        "good.safetensors",
        "good.report.json",
    }


@pytest.mark.parametrize("fmt", [recipe_pb2.NVFP4, recipe_pb2.MXFP4], ids=["nvfp4", "mxfp4"])
def test_fusion_group_shares_transform_and_global_scale(
    server: Server, statistic: str, unique: str, fmt: int
) -> None:
    """q, k and v of very different size get one input transform and one global scale."""
    recipe = Recipe(format=fmt, transform=recipe_pb2.WUSH)
    weights = {"q": WEIGHT, "k": 30 * WEIGHT[:8], "v": WEIGHT[::-1] / 50}
    fused = create_job(
        server.api,
        [
            layer(name, len(w), COLS, statistic=statistic, fusion_group="qkv")
            for name, w in weights.items()
        ],
        recipe,
        job_id=unique,
    )
    for described in fused.layers[:2]:
        upload(server.api, described.name, weights[described.layer_id])
    states = {x.state for x in get_job(server.api, fused.name).layers}
    assert states == {jobs_pb2.LAYER_WAITING}  # for the whole group
    upload(server.api, fused.layers[2].name, weights["v"])
    assert wait_for_job(server.api, fused.name).state == jobs_pb2.SUCCEEDED
    tensors = {name: result_tensors(server.api, fused.name, name) for name in weights}
    assert len({t["input_transform"].data for t in tensors.values()}) == 1
    if fmt == recipe_pb2.NVFP4:
        assert len({t["weight_global_scale"].data for t in tensors.values()}) == 1
    for name, tensor in tensors.items():
        assert tensor["weight_packed"].shape == (len(weights[name]), COLS // 2)

    alone = create_job(
        server.api,
        [layer(name, len(w), COLS, statistic=statistic) for name, w in weights.items()],
        recipe,
    )
    for described in alone.layers:
        upload(server.api, described.name, weights[described.layer_id])
    wait_for_job(server.api, alone.name)
    transforms = {
        result_tensors(server.api, alone.name, name)["input_transform"].data for name in weights
    }
    assert len(transforms) > 1


@pytest.mark.parametrize(
    "change",
    [{"cols": 128}, {"recipe": Recipe(format=recipe_pb2.INT4)}, {"statistic": ""}],
    ids=["cols", "recipe", "statistic"],
)
def test_fusion_group_that_does_not_fit_together(
    server: Server, statistic: str, change: dict[str, Any]
) -> None:
    fields = {"layer_id": "b", "rows": ROWS, "cols": COLS, "dtype": F32, "statistic": statistic}
    odd = jobs_pb2.Layer(fusion_group="g", **{**fields, **change})
    if "cols" in change:
        odd.statistic = ""
    first = layer("a", ROWS, COLS, statistic=statistic, fusion_group="g")
    with unharmed(server), refused("INVALID_ARGUMENT", says=["g"]) as refusal:
        create_job(server.api, [first, odd])
    assert any("layers[1]" in path for path in refusal.fields), refusal


def test_layers_own_recipe(server: Server, statistic: str, unique: str) -> None:
    job = create_job(
        server.api,
        [
            layer("job", ROWS, COLS, statistic=statistic),
            layer(
                "own",
                ROWS,
                COLS,
                statistic=statistic,
                recipe=Recipe(format=recipe_pb2.INT8, granularity=recipe_pb2.ROW),
            ),
        ],
        Recipe(format=recipe_pb2.MXFP4),
        job_id=unique,
    )
    assert job.layers[1].recipe.format == recipe_pb2.INT8
    for described in job.layers:
        upload(server.api, described.name, WEIGHT)
    wait_for_job(server.api, job.name)
    assert result_tensors(server.api, job.name, "job")["weight_packed"].shape == (ROWS, COLS // 2)
    assert result_tensors(server.api, job.name, "own")["weight_packed"].shape == (ROWS, COLS)


def test_awkward_weights(server: Server, statistic: str, unique: str) -> None:
    """All zero, one row, huge, tiny: finite results, no crash."""
    awkward = {
        "zero": np.zeros((ROWS, COLS)),
        "one-row": WEIGHT[:1],
        "huge": WEIGHT * 1e30,
        "tiny": WEIGHT * 1e-30,
        "one-outlier": np.where(np.arange(ROWS * COLS).reshape(ROWS, COLS) == 77, 1e6, WEIGHT),
        "rank-one": np.outer(WEIGHT[:, 0], WEIGHT[0]),
    }
    recipes = [
        Recipe(format=fmt, transform=transform)
        for fmt in (recipe_pb2.MXFP4, recipe_pb2.NVFP4, recipe_pb2.INT4, recipe_pb2.FP8)
        for transform in (recipe_pb2.IDENTITY, recipe_pb2.WUSH)
    ]
    layers = [
        layer(f"{name}-{n}", len(w), COLS, statistic=statistic, recipe=recipe)
        for name, w in awkward.items()
        for n, recipe in enumerate(recipes)
    ]
    job = create_job(server.api, layers, job_id=unique)
    for described in job.layers:
        upload(server.api, described.name, awkward[described.layer_id.rsplit("-", 1)[0]])
    ended = wait_for_job(server.api, job.name)
    errors = {x.layer_id: x.error.message for x in ended.layers if x.error.code}
    assert ended.state == jobs_pb2.SUCCEEDED, errors
    for described in ended.layers:
        report = error_report(server.api, job.name, described.layer_id)
        for key, value in report.items():
            if isinstance(value, float):
                assert np.isfinite(value), (described.layer_id, key, value)


# Cancel, delete, list ---------------------------------------------------------------------------


def _long_layers(count: int) -> list[jobs_pb2.Layer]:
    """Layers that take long enough to be interrupted."""
    return [layer(f"long-{n}", 1024, 1024, F64) for n in range(count)]


def test_cancel_before_anything_ran(server: Server, unique: str) -> None:
    job = create_job(server.api, [layer("w", ROWS, COLS)], job_id=unique)
    cancelled = server.api.jobs.CancelJob(jobs_pb2.CancelJobRequest(name=job.name))
    assert cancelled.state == jobs_pb2.CANCELLED
    assert cancelled.layers[0].state == jobs_pb2.LAYER_CANCELLED
    assert cancelled.HasField("end_time")
    again = server.api.jobs.CancelJob(jobs_pb2.CancelJobRequest(name=job.name))
    assert again == cancelled
    assert get_job(server.api, job.name) == cancelled


def test_cancel_while_running(server: Server, unique: str) -> None:
    """The running layer stops, the waiting ones never start, the next job runs at once."""
    layers = [layer("short", ROWS, COLS), *_long_layers(6)]
    job = create_job(
        server.api,
        layers,
        Recipe(format=recipe_pb2.NVFP4, transform=recipe_pb2.HADAMARD),
        job_id=unique,
    )
    upload(server.api, job.layers[0].name, WEIGHT)
    eventually(
        lambda: get_job(server.api, job.name).finished_layers == 1, "the short layer is done"
    )
    weight = gaussian(1024, 1024, 5)
    for described in job.layers[1:]:
        upload(server.api, described.name, weight, F64, chunk_bytes=1 << 20)
    wait_for_state(server.api, job.name, jobs_pb2.RUNNING, jobs_pb2.SUCCEEDED)
    server.api.jobs.CancelJob(jobs_pb2.CancelJobRequest(name=job.name))
    ended = wait_for_job(server.api, job.name)
    assert ended.state == jobs_pb2.CANCELLED
    states = [described.state for described in ended.layers]
    assert set(states) <= {jobs_pb2.LAYER_SUCCEEDED, jobs_pb2.LAYER_CANCELLED}
    assert states[0] == jobs_pb2.LAYER_SUCCEEDED
    assert states[-1] == jobs_pb2.LAYER_CANCELLED
    # Finished results stay readable, and nothing is there of the others.
    done = {x.layer_id for x in ended.layers if x.state == jobs_pb2.LAYER_SUCCEEDED}
    artifacts = list_artifacts(server.api, job.name)
    assert set(artifacts) == {
        f"{x}.{kind}" for x in done for kind in ("safetensors", "report.json")
    }
    assert result_tensors(server.api, job.name, "short")
    next_job = create_job(server.api, [layer("w", ROWS, COLS)])
    upload(server.api, next_job.layers[0].name, WEIGHT)
    assert wait_for_job(server.api, next_job.name).state == jobs_pb2.SUCCEEDED
    assert get_job(server.api, job.name) == ended  # nothing finished behind our back


def test_delete_while_running(server: Server, unique: str) -> None:
    before = server.blob_files()
    job = create_job(
        server.api,
        _long_layers(4),
        Recipe(format=recipe_pb2.NVFP4, transform=recipe_pb2.HADAMARD),
        job_id=unique,
    )
    weight = gaussian(1024, 1024, 5)
    for described in job.layers:
        upload(server.api, described.name, weight, F64, chunk_bytes=1 << 20)
    wait_for_state(server.api, job.name, jobs_pb2.RUNNING, jobs_pb2.SUCCEEDED)
    delete_job(server.api, job.name)
    with refused("NOT_FOUND", says=[job.name]):
        get_job(server.api, job.name)
    eventually(
        lambda: set(server.blob_files()) <= set(before),
        "weights and results of the deleted job are gone",
    )
    works(server.api)


def test_delete_ended(server: Server, unique: str) -> None:
    before = server.blob_files()
    job = create_job(server.api, [layer("w", ROWS, COLS)], job_id=unique)
    upload(server.api, job.layers[0].name, WEIGHT)
    wait_for_job(server.api, job.name)
    artifact = next(iter(list_artifacts(server.api, job.name).values()))
    assert set(server.blob_files()) - set(before)
    delete_job(server.api, job.name)
    eventually(lambda: set(server.blob_files()) <= set(before), "its files are gone")
    from .wire import read_artifact

    with refused("NOT_FOUND"):
        read_artifact(server.api, artifact.name)
    with refused("NOT_FOUND"):
        delete_job(server.api, job.name)


def test_list_pages(server: Server, unique: str) -> None:
    made = [
        create_job(server.api, [layer("w", ROWS, COLS)], job_id=f"{unique[:40]}-{n}").name
        for n in range(7)
    ]
    seen: list[str] = []
    token = ""
    while True:
        page = server.api.jobs.ListJobs(
            jobs_pb2.ListJobsRequest(parent="tenants/default", page_size=3, page_token=token)
        )
        assert len(page.jobs) <= 3
        assert all(not job.layers for job in page.jobs)
        seen += [job.name for job in page.jobs]
        token = page.next_page_token
        if not token:
            break
    assert seen == made[::-1]  # newest first, each once


def test_list_page_is_stable_while_jobs_come_and_go(server: Server, unique: str) -> None:
    made = [
        create_job(server.api, [layer("w", ROWS, COLS)], job_id=f"{unique[:40]}-{n}").name
        for n in range(4)
    ]
    request = jobs_pb2.ListJobsRequest(parent="tenants/default", page_size=2)
    first = server.api.jobs.ListJobs(request)
    create_job(server.api, [layer("w", ROWS, COLS)], job_id=f"{unique[:40]}-new")
    delete_job(server.api, made[3])
    request.page_token = first.next_page_token
    second = server.api.jobs.ListJobs(request)
    assert [job.name for job in second.jobs] == [made[1], made[0]]


@pytest.mark.parametrize("page_size", [-1, -(2**31)])
def test_list_with_a_negative_page_size(server: Server, page_size: int) -> None:
    with unharmed(server), refused("INVALID_ARGUMENT", field="page_size", says=[page_size]):
        server.api.jobs.ListJobs(
            jobs_pb2.ListJobsRequest(parent="tenants/default", page_size=page_size)
        )


def test_list_with_a_token_that_is_none(server: Server) -> None:
    for token in ("no-such-token", "\x00", "99999999999999999999", "A" * 5000):
        with unharmed(server), refused("INVALID_ARGUMENT", field="page_token"):
            server.api.jobs.ListJobs(
                jobs_pb2.ListJobsRequest(parent="tenants/default", page_token=token)
            )


def test_large_page_size_is_capped_not_refused(server: Server) -> None:
    create_job(server.api, [layer("w", ROWS, COLS)])
    listed = server.api.jobs.ListJobs(
        jobs_pb2.ListJobsRequest(parent="tenants/default", page_size=2**31 - 1)
    )
    assert len(listed.jobs) == 1


def test_many_layers(server: Server, unique: str) -> None:
    """A job of a whole model's size is created, read and cancelled."""
    layers = [layer(f"model.layers.{n}.mlp.down_proj", 4096, 14336) for n in range(500)]
    job = create_job(server.api, layers, job_id=unique)
    assert len(get_job(server.api, job.name).layers) == 500
    cancelled = server.api.jobs.CancelJob(jobs_pb2.CancelJobRequest(name=job.name))
    assert {x.state for x in cancelled.layers} == {jobs_pb2.LAYER_CANCELLED}


def test_two_jobs_at_once_give_what_each_gives_alone(
    server: Server, statistic: str, unique: str
) -> None:
    recipes = [Recipe(format=recipe_pb2.MXFP4, transform=recipe_pb2.WUSH)] * 4
    results: list[dict[str, Any]] = []

    def run(number: int) -> None:
        api = server.connect()
        job = create_job(
            api,
            [layer("w", ROWS, COLS, statistic=statistic)],
            recipes[number],
            job_id=f"{unique[:40]}-{number}",
        )
        upload(api, job.layers[0].name, WEIGHT)
        wait_for_job(api, job.name)
        results.append(result_tensors(api, job.name, "w"))

    threads = [threading.Thread(target=run, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4
    assert all(result == results[0] for result in results)
