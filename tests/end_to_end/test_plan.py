"""Weights that several jobs share, and plans that spread a budget of bits over them."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import quantd
from quantd.v1 import jobs_pb2, recipe_pb2
from safetensors import safe_open

from .refusal import refused
from .server_process import Server, eventually
from .wire import (
    F64,
    activations_like,
    create_job,
    delete_job,
    gaussian,
    get_job,
    layer,
    result_tensors,
    sealed_statistic,
    upload,
    upload_status,
    wait_for_job,
)

Tool = Callable[..., subprocess.CompletedProcess[str]]
ROWS, COLS = 24, 64
WEIGHT = gaussian(ROWS, COLS, seed=41)
INT8 = recipe_pb2.Recipe(format=recipe_pb2.INT8)


@pytest.fixture(autouse=True)
def no_jobs_left(server: Server) -> Iterator[None]:
    yield
    request = jobs_pb2.ListJobsRequest(parent="tenants/default", page_size=1000)
    for job in server.api.jobs.ListJobs(request).jobs:
        delete_job(server.api, job.name)


@pytest.fixture
def client(server: Server) -> Iterator[quantd.Client]:
    with quantd.connect(server.address, progress=False, retry_timeout_s=20) as connected:
        yield connected


def uploaded(server: Server, layer_id: str = "w") -> jobs_pb2.Job:
    job = create_job(server.api, [layer(layer_id, ROWS, COLS)])
    upload(server.api, job.layers[0].name, WEIGHT)
    return wait_for_job(server.api, job.name)


# weight_of --------------------------------------------------------------------------------------


def test_a_job_on_the_weight_of_another(server: Server) -> None:
    """It runs without an upload and gives what an upload would have given."""
    source = uploaded(server)
    uploaded_again = create_job(server.api, [layer("w", ROWS, COLS)], INT8)
    upload(server.api, uploaded_again.layers[0].name, WEIGHT)
    wait_for_job(server.api, uploaded_again.name)

    job = create_job(server.api, [layer("w", ROWS, COLS, weight_of=source.layers[0].name)], INT8)
    assert job.layers[0].weight_of == source.layers[0].name
    status = upload_status(server.api, job.layers[0].name)
    assert (status.complete, status.committed_size) == (True, status.size)
    assert wait_for_job(server.api, job.name).state == jobs_pb2.SUCCEEDED
    mine = result_tensors(server.api, job.name, "w")
    for name, tensor in result_tensors(server.api, uploaded_again.name, "w").items():
        assert tensor.data == mine[name].data, name
    with refused("FAILED_PRECONDITION", "UPLOAD_COMPLETE"):
        upload(server.api, job.layers[0].name, WEIGHT)


def test_a_shared_weight_outlives_its_source(start_server: Callable[..., Server]) -> None:
    """One blob; it goes with the last layer that has it, and not with a restart before."""
    server = start_server()
    source = uploaded(server)
    stored = len(server.blob_files())
    jobs = [
        create_job(server.api, [layer("w", ROWS, COLS, weight_of=source.layers[0].name)], INT8)
        for _ in range(2)
    ]
    for job in jobs:
        wait_for_job(server.api, job.name)
    assert len(server.blob_files()) == stored + 4  # results and reports, no weights
    delete_job(server.api, source.name)
    delete_job(server.api, jobs[0].name)
    server.kill()
    server.restart()
    assert get_job(server.api, jobs[1].name).layers[0].weight_of == source.layers[0].name
    again = layer("w", ROWS, COLS, weight_of=jobs[1].layers[0].name)
    third = create_job(server.api, [again])
    assert wait_for_job(server.api, third.name).state == jobs_pb2.SUCCEEDED
    delete_job(server.api, jobs[1].name)
    delete_job(server.api, third.name)
    assert server.blob_files() == {}


def test_sources_that_do_not_fit_are_refused(server: Server) -> None:
    source = uploaded(server)
    waiting = create_job(server.api, [layer("w", ROWS, COLS)])
    name = source.layers[0].name

    def take(weight_of: str, rows: int = ROWS, **more: int) -> None:
        create_job(server.api, [layer("w", rows, COLS, weight_of=weight_of, **more)], INT8)

    with refused("FAILED_PRECONDITION", "UPLOAD_INCOMPLETE", says=[waiting.layers[0].name]):
        take(waiting.layers[0].name)
    with refused("INVALID_ARGUMENT", field="weight_of", says=[f"{ROWS} x {COLS}"]):
        take(name, ROWS * 2)
    with refused("INVALID_ARGUMENT", field="weight_of"):
        take(name, dtype=F64)
    with refused("INVALID_ARGUMENT", field="weight_of"):
        take("w")
    with refused("NOT_FOUND", says=["weight_of"]):
        take(f"{source.name}/layers/absent")
    with refused("NOT_FOUND", says=["weight_of"]):
        take("tenants/default/jobs/absent/layers/w")
    with refused("PERMISSION_DENIED"):
        take(name.replace("tenants/default", "tenants/other"))


# PlanJob ----------------------------------------------------------------------------------------


def test_planning_needs_finished_candidates(server: Server) -> None:
    job = create_job(server.api, [layer("w", ROWS, COLS)])
    request = jobs_pb2.PlanJobRequest(name=job.name, bits_per_weight=5)
    with refused("FAILED_PRECONDITION", "CANDIDATES_UNFINISHED", says=["w"]):
        server.api.jobs.PlanJob(request)
    server.api.jobs.CancelJob(jobs_pb2.CancelJobRequest(name=job.name))
    with refused("FAILED_PRECONDITION", "NO_CANDIDATE", says=["w"]):
        server.api.jobs.PlanJob(request)
    for bits in (0.0, -1.0, float("nan")):
        request.bits_per_weight = bits
        with refused("INVALID_ARGUMENT", field="bits_per_weight"):
            server.api.jobs.PlanJob(request)
    with refused("NOT_FOUND"):
        server.api.jobs.PlanJob(
            jobs_pb2.PlanJobRequest(name="tenants/default/jobs/absent", bits_per_weight=3)
        )


def model(server: Server, name: str, scale: int = 1) -> jobs_pb2.Job:
    """Layers that are not equally hard: of other sizes and on other inputs; q and k are fused."""
    inputs = {
        "plain": gaussian(300, COLS, 42),
        "outliers": activations_like(300, COLS, 43),
    }
    statistics = {
        kind: sealed_statistic(server.api, f"{name}-{kind}", x).name for kind, x in inputs.items()
    }
    specs = [("q", 32, "outliers", "qk"), ("k", 16, "outliers", "qk")]
    specs += [("up", 96, "plain", ""), ("down", 48, "outliers", ""), ("out", 32, "plain", "")]
    layers = [
        layer(each, scale * rows, COLS, statistic=statistics[kind], fusion_group=group)
        for each, rows, kind, group in specs
    ]
    job = create_job(server.api, layers)
    for i, each in enumerate(job.layers):
        weights = gaussian(each.rows, COLS, 50 + i)
        weights[:, : 4 * i] *= 1 + 2 * i  # some have outlying columns
        upload(server.api, each.name, weights)
    return wait_for_job(server.api, job.name)


def test_plan_and_commit_from_python(server: Server, client: quantd.Client, unique: str) -> None:
    source = model(server, unique)
    before = {job.name for job in client.list_jobs()}
    formats = ("mxfp4", "nvfp4", "int4", "int8")
    plan = client.plan(source.name, 6.0, formats=formats)
    assert {job.name for job in client.list_jobs()} == before, "the measuring job stayed"

    assert [each.layer for each in plan.layers] == [each.name for each in source.layers]
    assert plan.bits_per_weight <= 6.0
    assert plan.error_bound <= plan.error
    assert plan.uniform_error is not None
    assert plan.gain is not None
    assert plan.gain > 1.2
    assert len({each.recipe.format for each in plan.layers}) > 1
    assert plan.layers[0].recipe == plan.layers[1].recipe, "q and k share a recipe"
    assert plan.error_figure == "relative_output_error_weight_only"

    job = client.wait(client.create_job_from_plan(plan), timeout_s=60)
    assert [each.layer_id for each in job.layers] == ["q", "k", "up", "down", "out"]
    reports = [client.get_report(job, each.layer_id) for each in plan.layers]
    share = [each.parameters / plan.parameters for each in plan.layers]
    for figure, predicted in (
        ("bits_per_weight", plan.bits_per_weight),
        ("relative_output_error_weight_only", plan.error),
    ):
        measured = sum(s * report[figure] for s, report in zip(share, reports, strict=True))
        assert measured == pytest.approx(predicted, rel=1e-9), figure


def test_rates_between_those_measured(server: Server, client: quantd.Client, unique: str) -> None:
    """WaterSIC takes any rate, at one slope; what comes of it is close to the prediction."""
    source = model(server, unique, scale=4)
    plan = client.plan(source.name, 3.3, method="watersic", rates=(2, 3, 4, 5, 6))
    assert plan.bits_per_weight == pytest.approx(3.3, abs=1e-6)
    assert plan.error == pytest.approx(plan.error_bound, rel=1e-6)
    assert plan.gain is not None
    assert plan.gain > 1.05
    rates = [each.recipe.rate_bits for each in plan.layers]
    assert rates[0] == rates[1], "q and k share a recipe"
    assert len({round(rate, 3) for rate in rates if rate is not None}) == 4

    job = client.wait(client.create_job_from_plan(plan), timeout_s=60)
    share = [each.parameters / plan.parameters for each in plan.layers]
    reports = [client.get_report(job, each.layer_id) for each in plan.layers]
    bits, error = (
        sum(s * report[figure] for s, report in zip(share, reports, strict=True))
        for figure in ("bits_per_weight", "relative_output_error_weight_only")
    )
    assert bits == pytest.approx(3.3, abs=0.02)
    assert error == pytest.approx(plan.error, rel=0.1)
    assert plan.uniform_error is not None
    assert error < plan.uniform_error


def test_a_kept_measuring_job_plans_any_budget(
    server: Server, client: quantd.Client, unique: str
) -> None:
    """A larger budget never has a larger error, and no plan is worse than its uniform choice."""
    source = model(server, unique)
    plan = client.plan(source.name, 6.0, formats=("mxfp4", "int4", "int8"), keep=True)
    low, high = plan.least_bits_per_weight, plan.most_bits_per_weight
    last = float("inf")
    for bits in np.linspace(low, high, 9):
        other = client.plan_job(plan.measuring_job, float(bits))
        assert other.error <= last
        assert other.uniform_error is None or other.error <= other.uniform_error
        last = other.error
    for bits in (low - 0.1, high + 0.1):
        with pytest.raises(quantd.OutOfRange, match=rf"{low:.2f}.*\.\..*{high:.2f}"):
            client.plan_job(plan.measuring_job, bits)


def test_plan_options_are_checked(server: Server, client: quantd.Client) -> None:
    source = uploaded(server)
    for options in (
        {},
        {"rates": (2, 3)},
        {"method": "watersic", "formats": ("int4",)},
        {"formats": ("int4", "int4")},
    ):
        with pytest.raises(quantd.InvalidArgument):
            client.plan(source.name, 4.0, **options)  # type: ignore[arg-type]


# quantctl plan ----------------------------------------------------------------------------------


def test_quantctl_shows_a_plan(server: Server, quantctl: Tool, unique: str) -> None:
    source = model(server, unique)
    at = ("--server", server.address, "plan", source.name, "--formats", "mxfp4,nvfp4,int8")
    shown = quantctl(*at, "--bits", 6, check=True).stdout
    lines = shown.splitlines()
    head = "LAYER PARAMETERS RECIPE BITS ERROR UNIFORM SHARE"
    assert " ".join(lines[0].split()) == head
    assert [line.split()[0] for line in lines[1:7]] == ["q", "k", "up", "down", "out", "all"]
    assert "times less than uniform" in shown
    listed = quantctl("--server", server.address, "jobs", "--json", check=True).stdout
    assert len(listed.splitlines()) == 1, "nothing but the job itself is left"

    kept = json.loads(quantctl(*at, "--bits", 6, "--keep", "--json", check=True).stdout)
    assert kept["predicted"]["error"] < kept["uniform"]["error"]
    assert kept["measured"] is None
    assert get_job(server.api, server.api.job_name(kept["measuring_job"])).state
    refusal = quantctl(*at, "--bits", 2)
    assert refusal.returncode == 1
    assert f"{kept['least_bits_per_weight']:.4f}.." in refusal.stderr


def test_quantctl_commits_a_plan(
    server: Server, quantctl: Tool, tmp_path: Path, unique: str
) -> None:
    """The plan beside the results says what was predicted and what came of it."""
    source = model(server, unique)
    out = tmp_path / "planned"
    done = quantctl(
        *("--server", server.address, "plan", source.name, "--bits", 6),
        *("--formats", "mxfp4,int4,int8", "--commit", "--out", out),
        check=True,
    )
    assert "measured:" in done.stdout
    plan = json.loads((out / "plan.json").read_text())
    for figure in ("bits_per_weight", "error"):
        assert plan["measured"][figure] == pytest.approx(plan["predicted"][figure], rel=1e-9)
    assert plan["measured_gain"] > 1.0
    job = get_job(server.api, server.api.job_name(plan["job"]))
    assert job.state == jobs_pb2.SUCCEEDED
    for each in plan["layers"]:
        report = json.loads((out / f"{each['layer']}.report.json").read_text())
        assert report["bits_per_weight"] == each["measured_bits_per_weight"]
        assert report["recipe"]["format"] == each["recipe"]["format"]
        with safe_open(out / f"{each['layer']}.safetensors", framework="numpy") as result:
            assert result.keys()


def test_quantctl_plan_usage(quantctl: Tool) -> None:
    for wrong in (
        ["job"],
        ["job", "--bits", "3", "--rates", "2,3"],
        ["job", "--bits", "3", "--method", "watersic", "--formats", "int4"],
        ["job", "--bits", "3", "--formats", "int5"],
        ["job", "--bits", "3", "--commit"],
    ):
        assert quantctl("plan", *wrong).returncode == 2, wrong


def test_a_plan_that_fails_leaves_no_job(server: Server, quantctl: Tool, unique: str) -> None:
    source = model(server, unique)
    refusal = quantctl("--server", server.address, "plan", source.name, "--bits", 60)
    assert refusal.returncode == 1
    request = jobs_pb2.ListJobsRequest(parent="tenants/default")
    eventually(
        lambda: len(server.api.jobs.ListJobs(request).jobs) == 1, "the measuring job is deleted"
    )
