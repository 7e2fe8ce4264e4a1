"""What an administrator sees: quotas and usage of every tenant, and none of their secrets."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from quantd.v1 import jobs_pb2, server_pb2

from .refusal import refused
from .server_process import Api, Server, eventually
from .wire import (
    ActivationStream,
    activation_header,
    activations_like,
    create_job,
    gaussian,
    layer,
    sealed_statistic,
    upload,
    wait_for_job,
)

COLS = 64


def _token(name: str) -> str:
    return hashlib.sha256(f"{name}-token".encode()).hexdigest()


ALPHA = f"""
tenants {{
  name: "alpha" weight: 3 max_calls: 7 token_sha256: "{_token("alpha")}"
  max_running_layers: 2 max_device_seconds_per_day: 5000
}}
"""
BETA = f'tenants {{ name: "beta" token_sha256: "{_token("beta")}" }}'
OPERATIONS = f"""
tenants {{ name: "operations" tokens {{ id: "x" sha256: "{_token("admin")}" roles: ADMIN }} }}
"""


@pytest.fixture
def server(start_server: Callable[..., Server]) -> Iterator[Server]:
    yield start_server(config="\n".join([ALPHA, BETA, OPERATIONS]))


@pytest.fixture
def admin(server: Server) -> Api:
    return server.connect("operations", "admin-token")


def listed(api: Api) -> dict[str, server_pb2.Tenant]:
    answer = api.server.ListTenants(server_pb2.ListTenantsRequest())
    return {tenant.name.removeprefix("tenants/"): tenant for tenant in answer.tenants}


def test_quotas_and_usage(server: Server, admin: Api) -> None:
    alpha = server.connect("alpha", "alpha-token")
    statistic = sealed_statistic(alpha, "s", activations_like(64, COLS, 1))
    job = create_job(alpha, [layer("w", 8, COLS, statistic=statistic.name)])
    upload(alpha, job.layers[0].name, gaussian(8, COLS, 1))
    wait_for_job(alpha, job.name)
    stream = ActivationStream(alpha, activation_header(alpha.statistic_name("open"), COLS))

    tenants = listed(admin)
    assert list(tenants) == ["alpha", "beta", "operations"]
    quotas, usage = tenants["alpha"].quotas, tenants["alpha"].usage
    assert (quotas.weight, quotas.max_calls, quotas.max_jobs) == (3, 7, 1000)
    assert (quotas.max_running_layers, quotas.max_device_seconds_per_day) == (2, 5000)
    assert tenants["beta"].quotas.max_calls == 1024
    unlimited = tenants["beta"].quotas
    assert (unlimited.max_running_layers, unlimited.max_device_seconds_per_day) == (0, 0)
    assert (usage.jobs, usage.statistics, usage.streams, usage.calls) == (1, 2, 1, 1)
    assert usage.stored_bytes > 0 and usage.device_seconds > 0
    assert 0 < usage.device_seconds_today <= usage.device_seconds  # less at midnight
    assert (usage.running_layers, usage.waiting_layers, usage.uploads) == (0, 0, 0)
    assert tenants["beta"].usage == server_pb2.TenantUsage()
    assert all(tenant.configured for tenant in tenants.values())
    stream.finish()
    eventually(lambda: listed(admin)["alpha"].usage.calls == 0, "the stream has ended")


def test_a_tenant_that_was_removed_is_shown_while_it_has_something(
    server: Server, admin: Api
) -> None:
    beta = server.connect("beta", "beta-token")
    create_job(beta, [layer("w", 8, COLS)])
    assert server.reload("\n".join([ALPHA, OPERATIONS]))["event"] == "reloaded"
    tenants = listed(admin)
    assert list(tenants) == ["alpha", "beta", "operations"]
    assert not tenants["beta"].configured
    assert tenants["beta"].usage.jobs == 1


def test_an_administrator_sees_no_data(server: Server, admin: Api) -> None:
    alpha = server.connect("alpha", "alpha-token")
    job = create_job(alpha, [layer("secret-layer", 8, COLS)], job_id="secret-job")
    answer = admin.server.ListTenants(server_pb2.ListTenantsRequest())
    text = str(answer)
    for secret in ("secret", _token("alpha"), _token("admin")):
        assert secret not in text
    with refused("PERMISSION_DENIED", "ROLE_REQUIRED"):
        admin.jobs.GetJob(jobs_pb2.GetJobRequest(name=job.name))


def test_quantctl_tenants(server: Server, quantctl: Callable[..., Any]) -> None:
    flags = ("--server", server.address, "--token")
    shown = quantctl(*flags, "admin-token", "tenants", check=True).stdout
    assert [line.split()[0] for line in shown.splitlines()] == [
        "TENANT",
        "alpha",
        "beta",
        "operations",
    ]
    lines = quantctl(*flags, "admin-token", "tenants", "--json", check=True).stdout.splitlines()
    listed_as_json = [json.loads(line) for line in lines]
    assert [tenant["tenant"] for tenant in listed_as_json] == ["alpha", "beta", "operations"]
    assert " 0 of 2 " in shown.splitlines()[1] and " 0 of 5000 " in shown.splitlines()[1]
    assert listed_as_json[0]["quotas"]["max_running_layers"] == 2
    assert listed_as_json[0]["quotas"]["max_device_seconds_per_day"] == 5000
    assert listed_as_json[0]["usage"]["device_seconds_today"] == 0
    refused_run = quantctl(*flags, "alpha-token", "tenants")
    assert refused_run.returncode != 0 and "admin" in refused_run.stderr


def test_without_tenants_everyone_is_the_administrator(start_server: Callable[..., Server]) -> None:
    server = start_server("open")
    assert list(listed(server.api)) == ["default"]
