"""Every method with every role, against the table in docs/security.md."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from .every_method import METHODS, refusal_of
from .refusal import take_apart
from .server_process import Server

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "security.md"
ROLES = ("submit", "read", "admin")


def documented_roles() -> dict[str, set[str]]:
    rows = re.findall(r"^\| `(\w+/\w+)` \| ([a-z, ]+) \|$", DOCUMENT.read_text(), re.MULTILINE)
    return {method: set(roles.split(", ")) for method, roles in rows}


def token_config(roles: tuple[str, ...]) -> str:
    name = "-".join(roles)
    digest = hashlib.sha256(name.encode()).hexdigest()
    listed = " ".join(f"roles: {role.upper()}" for role in roles)
    return f'tokens {{ id: "{name}" sha256: "{digest}" {listed} }}'


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    tokens = [token_config((role,)) for role in ROLES]
    default = hashlib.sha256(b"default").hexdigest()
    config = f'tenants {{ name: "acme" token_sha256: "{default}" {" ".join(tokens)} }}'
    started = Server(tmp_path_factory.mktemp("roles") / "data", config=config).start()
    yield started
    started.stop()


def test_every_method_is_documented() -> None:
    documented = documented_roles()
    assert set(documented) == set(METHODS)
    assert all(roles and roles <= set(ROLES) for roles in documented.values())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("role", ROLES)
def test_role(server: Server, method: str, role: str) -> None:
    error = refusal_of(server.connect("acme", role), method)
    allowed = role in documented_roles()[method]
    if allowed:  # an empty message is answered, or refused for what it lacks
        assert error is None or take_apart(error).reason != "ROLE_REQUIRED"
    else:
        assert error is not None
        refusal = take_apart(error)
        assert refusal.code is grpc.StatusCode.PERMISSION_DENIED
        assert refusal.reason == "ROLE_REQUIRED"
        assert method in refusal.message and role in refusal.message


@pytest.mark.parametrize("method", METHODS)
def test_a_token_without_roles_submits_and_reads(server: Server, method: str) -> None:
    error = refusal_of(server.connect("acme", "default"), method)
    refused = error is not None and take_apart(error).reason == "ROLE_REQUIRED"
    assert refused == documented_roles()[method].isdisjoint({"submit", "read"})


@pytest.mark.parametrize("method", METHODS)
def test_nobody_may_anything(server: Server, method: str) -> None:
    error = refusal_of(server.connect("acme", "unknown"), method)
    assert error is not None
    assert take_apart(error).code is grpc.StatusCode.UNAUTHENTICATED
