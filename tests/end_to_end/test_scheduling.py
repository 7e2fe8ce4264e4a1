"""Priorities, deadlines and quotas of jobs, and what a caller sees of the queue."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from quantd.v1 import jobs_pb2, recipe_pb2

from .refusal import refused, unharmed
from .server_process import Api, Server, eventually
from .wire import (
    F32,
    activations_like,
    gaussian,
    get_job,
    layer,
    sealed_statistic,
    upload,
    wait_for_job,
    watch,
)

TOKEN = "a token"
QUICK = recipe_pb2.Recipe(format=recipe_pb2.MXFP4)
# Seconds of work for a layer of a few thousand columns: longer than any step of these tests.
SLOW = recipe_pb2.Recipe(format=recipe_pb2.INT4, transform=recipe_pb2.WUSH, group_size=128)


def _config(**tenant: object) -> str:
    fields = " ".join(f"{name}: {value}" for name, value in tenant.items())
    digest = hashlib.sha256(TOKEN.encode()).hexdigest()
    return f'tenants {{ name: "acme" token_sha256: "{digest}" {fields} }}\n'


def _create(api: Api, layers: int, job_id: str, recipe: recipe_pb2.Recipe = QUICK, **fields: Any):
    rows, cols = fields.pop("shape", (16, 64))
    statistic = fields.pop("statistic", "")
    job = jobs_pb2.Job(
        recipe=recipe,
        layers=[layer(f"l{n}", rows, cols, F32, statistic=statistic) for n in range(layers)],
        **fields,
    )
    request = jobs_pb2.CreateJobRequest(parent=api.parent, job_id=job_id, job=job)
    return api.jobs.CreateJob(request).job


def _in(seconds: float) -> Timestamp:
    timestamp = Timestamp()
    timestamp.FromNanoseconds(int((time.time() + seconds) * 1e9))
    return timestamp


class Blocked:
    """A server whose only slot is held by a long layer until `release`."""

    def __init__(self, server: Server, api: Api):
        self.api = api
        cols = 3072
        statistic = sealed_statistic(api, "blocking", activations_like(64, cols, 1)).name
        recipe = recipe_pb2.Recipe(method=recipe_pb2.GPTQ)
        recipe.MergeFrom(SLOW)
        self.job = _create(api, 1, "blocker", recipe, shape=(cols, cols), statistic=statistic)
        self._upload = gaussian(cols, cols, 1)
        upload(api, self.job.layers[0].name, self._upload)
        eventually(
            lambda: get_job(api, self.job.name).state == jobs_pb2.RUNNING, "the blocker runs", 30
        )

    def release(self) -> None:
        self.api.jobs.CancelJob(jobs_pb2.CancelJobRequest(name=self.job.name))


def _fill(api: Api, job: jobs_pb2.Job) -> None:
    for described in job.layers:
        upload(api, described.name, gaussian(described.rows, described.cols, 3))


def _ends(server: Server, *jobs: str) -> list[str]:
    """Ids of jobs in the order in which their layers ran, from the log."""
    order = [
        entry["job"].rsplit("/", 1)[-1] for entry in server.log if entry["event"] == "work_ended"
    ]
    return [job for job in order if job in jobs]


def test_priorities_and_places_in_the_queue(start_server: Callable[..., Server]) -> None:
    """A job of high priority goes between the layers of a normal one, a low one comes last."""
    server = start_server()
    api = server.api
    blocked = Blocked(server, api)
    for job_id, priority in (("low", 1), ("normal", 0), ("high", 3)):
        job = _create(api, 3, job_id, priority=priority)
        assert job.priority == (priority or jobs_pb2.PRIORITY_NORMAL)
        _fill(api, job)
    places = {job_id: get_job(api, api.job_name(job_id)) for job_id in ("high", "normal", "low")}
    assert [job.queue_position for job in places.values()] == [1, 4, 7]
    assert all(job.eta_seconds > 0 for job in places.values())
    listed = api.jobs.ListJobs(jobs_pb2.ListJobsRequest(parent=api.parent)).jobs
    assert {job.name: job.queue_position for job in listed} == {
        job.name: job.queue_position for job in (*places.values(), get_job(api, blocked.job.name))
    }

    updates = watch(api, places["low"].name)
    first = next(updates)
    assert first.queue_position == first.job.queue_position == 7
    blocked.release()
    for job_id in places:
        assert wait_for_job(api, api.job_name(job_id)).state == jobs_pb2.SUCCEEDED
    last = list(updates)[-1]
    assert (last.queue_position, last.job.HasField("eta_seconds")) == (0, False)
    assert _ends(server, *places) == ["high"] * 3 + ["normal"] * 3 + ["low"] * 3


def test_a_long_job_gives_way_between_its_layers(start_server: Callable[..., Server]) -> None:
    server = start_server()
    api = server.api
    cols = 512
    statistic = sealed_statistic(api, "shared", activations_like(64, cols, 1)).name
    long = _create(api, 12, "long", SLOW, shape=(cols, cols), statistic=statistic)
    urgent = _create(api, 1, "urgent", priority=jobs_pb2.PRIORITY_HIGH)
    _fill(api, long)
    eventually(lambda: get_job(api, long.name).finished_layers >= 1, "the long job works", 30)
    _fill(api, urgent)
    wait_for_job(api, urgent.name)
    assert not get_job(api, long.name).HasField("end_time")
    assert wait_for_job(api, long.name).state == jobs_pb2.SUCCEEDED
    order = _ends(server, "long", "urgent")
    assert 1 <= order.index("urgent") < 12
    assert 'quantd_preemptions_total{reason="priority"} 1' in server.metrics()


def test_unknown_priority(start_server: Callable[..., Server]) -> None:
    server = start_server()
    with unharmed(server), refused("INVALID_ARGUMENT", field="priority", says=[42]):
        _create(server.api, 1, "j", priority=42)


# Deadlines --------------------------------------------------------------------------------------


def test_deadline_ends_what_waits_and_what_runs(start_server: Callable[..., Server]) -> None:
    server = start_server()
    api = server.api
    cols = 4096
    statistic = sealed_statistic(api, "s", activations_like(64, cols, 1)).name
    weight = gaussian(cols, cols, 1)
    quick = _create(api, 2, "half-done", deadline=_in(6))
    upload(api, quick.layers[0].name, gaussian(16, 64, 1))
    eventually(lambda: get_job(api, quick.name).finished_layers == 1, "the first layer is done")
    running = _create(
        api, 2, "running", SLOW, shape=(cols, cols), statistic=statistic, deadline=_in(10)
    )
    for described in running.layers:
        upload(api, described.name, weight)
    eventually(lambda: get_job(api, running.name).state == jobs_pb2.RUNNING, "it runs", 30)

    for name, finished in ((quick.name, 1), (running.name, 0)):
        job = wait_for_job(api, name)
        assert job.state == jobs_pb2.FAILED
        assert job.finished_layers == 2
        failed = [x for x in job.layers if x.state == jobs_pb2.LAYER_FAILED]
        assert len(failed) == 2 - finished
        for described in failed:
            assert described.error.code == 4  # DEADLINE_EXCEEDED
            assert "deadline" in described.error.message
        assert job.end_time.ToNanoseconds() >= job.deadline.ToNanoseconds()
    # The slot is free again.
    after = _create(api, 1, "after")
    _fill(api, after)
    assert wait_for_job(api, after.name).state == jobs_pb2.SUCCEEDED
    assert "quantd_expired_jobs_total 2" in server.metrics()
    expired = [entry for entry in server.log if entry["event"] == "job_expired"]
    assert len(expired) == 2


def test_deadline_passes_while_the_server_is_away(start_server: Callable[..., Server]) -> None:
    server = start_server()
    job = _create(server.api, 1, "late", deadline=_in(1.5))
    server.kill()
    time.sleep(1.6)
    server.restart()
    job = get_job(server.api, job.name)
    assert job.state == jobs_pb2.FAILED
    assert job.layers[0].error.code == 4


def test_deadline_in_the_past(start_server: Callable[..., Server]) -> None:
    server = start_server()
    with unharmed(server), refused("INVALID_ARGUMENT", field="deadline"):
        _create(server.api, 1, "j", deadline=_in(-5))
    with unharmed(server), refused("INVALID_ARGUMENT", field="deadline"):
        _create(server.api, 1, "j", deadline=Timestamp(seconds=2**62))


# Quotas -----------------------------------------------------------------------------------------


def test_no_more_layers_run_than_the_tenant_may(start_server: Callable[..., Server]) -> None:
    server = start_server(config=_config(max_running_layers=1) + "cpu_slots: 3\n")
    api = server.connect("acme", TOKEN)
    blocked = Blocked(server, api)
    job = _create(api, 2, "waits")
    _fill(api, job)
    waiting = get_job(api, job.name)
    assert waiting.state == jobs_pb2.QUEUED
    assert waiting.quota_wait.quota == "max_running_layers"
    assert not waiting.quota_wait.HasField("until")
    assert waiting.queue_position == 1
    assert next(watch(api, job.name)).job.quota_wait == waiting.quota_wait
    assert 'quantd_quota_waiting_groups{quota="max_running_layers"} 2' in server.metrics()
    blocked.release()
    assert not wait_for_job(api, job.name).HasField("quota_wait")


def test_device_seconds_of_a_day_are_kept_over_restarts(
    start_server: Callable[..., Server], quantctl: Callable[..., Any]
) -> None:
    estimate_of = start_server("first").api
    cols = 1024
    job = jobs_pb2.Job(
        recipe=SLOW, layers=[layer("w", cols, cols, F32, statistic="tenants/default/statistics/s")]
    )
    request = jobs_pb2.CreateJobRequest(parent="tenants/default", job=job, validate_only=True)
    estimate = estimate_of.jobs.CreateJob(request).estimate.device_seconds

    server = start_server("data", config=_config(max_device_seconds_per_day=1.5 * estimate))
    api = server.connect("acme", TOKEN)
    statistic = sealed_statistic(api, "s", activations_like(64, cols, 1)).name
    jobs = [
        _create(api, 1, f"j{n}", SLOW, shape=(cols, cols), statistic=statistic) for n in range(20)
    ]
    for created in jobs:
        _fill(api, created)

    def held() -> jobs_pb2.Job | None:
        last = get_job(api, jobs[-1].name)
        busy = any(get_job(api, x.name).state == jobs_pb2.RUNNING for x in jobs)
        return last if last.HasField("quota_wait") and not busy else None

    # Before midnight (UTC) the day is used up; a test that runs over it sees the next day's.
    waiting = eventually(held, "the day's seconds are used up", 60)
    assert waiting.state == jobs_pb2.QUEUED
    assert waiting.quota_wait.quota == "max_device_seconds_per_day"
    until = waiting.quota_wait.until.ToNanoseconds() / 1e9
    assert until % 86400 == 0
    assert 0 < until - time.time() <= 86400
    assert waiting.eta_seconds >= until - time.time()
    shown = quantctl("--server", server.address, "--token", TOKEN, "jobs", check=True).stdout
    assert "waits for max_device_seconds_per_day until" in shown
    done = [x.name for x in jobs if get_job(api, x.name).state == jobs_pb2.SUCCEEDED]
    assert done

    for stop in (server.kill, lambda: (server.terminate(), server.wait())):
        stop()
        server.restart()
        api = server.connect("acme", TOKEN)
        again = eventually(held, "it still waits")
        assert again.quota_wait == waiting.quota_wait
        assert [x.name for x in jobs if get_job(api, x.name).state == jobs_pb2.SUCCEEDED] == done


def test_what_a_day_cannot_hold_is_refused(start_server: Callable[..., Server]) -> None:
    server = start_server(config=_config(max_device_seconds_per_day=0.0001))
    api = server.connect("acme", TOKEN)
    with refused("RESOURCE_EXHAUSTED", says=["max_device_seconds_per_day"]):
        _create(api, 1, "j", shape=(4096, 4096))


# Clients ----------------------------------------------------------------------------------------


def test_the_python_client_says_when_and_how_urgent(start_server: Callable[..., Server]) -> None:
    from datetime import UTC, datetime, timedelta

    import quantd

    server = start_server()
    deadline = datetime.now(UTC).replace(microsecond=0) + timedelta(hours=1)
    with quantd.connect(server.address) as client:
        spec = quantd.LayerSpec("w", 16, 64)
        made = client.create_job(quantd.Recipe("mxfp4"), [spec], priority="high", deadline=deadline)
        assert (made.priority, made.deadline, made.queue_position) == ("high", deadline, 0)
        assert client.get_job(made) == made
        with pytest.raises(quantd.InvalidArgument, match="priority"):
            client.create_job(quantd.Recipe("mxfp4"), [spec], priority="urgent")  # type: ignore[arg-type]
        with pytest.raises(quantd.InvalidArgument, match="time zone"):
            client.create_job(quantd.Recipe("mxfp4"), [spec], deadline=datetime(2100, 1, 1))


def test_quantctl_says_when_and_how_urgent(
    start_server: Callable[..., Server], quantctl: Callable[..., Any], tmp_path: Any
) -> None:
    from safetensors.numpy import save_file

    server = start_server()
    weights = tmp_path / "w.safetensors"
    save_file({"weight": gaussian(16, 64, 1).astype(np.float32)}, weights)
    quantctl(
        *("--server", server.address, "quantize", "--weights", weights, "--format", "mxfp4"),
        *("--priority", "high", "--deadline", 3600, "--out", tmp_path / "out", "--job", "mine"),
        check=True,
    )
    shown = quantctl("--server", server.address, "--json", "jobs", check=True).stdout
    job = json.loads(shown)
    assert job["priority"] == "high"
    assert job["deadline"] is not None
    assert job["queue_position"] == 0
