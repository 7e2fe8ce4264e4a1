"""Who did what: a line a change and a line a refusal, and never a secret."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from quantd.v1 import jobs_pb2, server_pb2

from .every_method import METHODS, refusal_of
from .refusal import refused
from .server_process import Server, eventually
from .test_authentication import Issuer
from .wire import (
    activations_like,
    create_job,
    delete_job,
    delete_statistic,
    gaussian,
    layer,
    sealed_statistic,
    stream_activations,
    upload,
    wait_for_job,
)

FIELDS = ["time", "level", "event", "tenant", "credential", "peer", "method", "resource"]
FIELDS += ["outcome", "reason", "suppressed"]
TOKEN = "alpha-0123456789abcdef"


def config(audit_file: Path | None = None, more: str = "") -> str:
    digest = hashlib.sha256(TOKEN.encode()).hexdigest()
    reader = hashlib.sha256(b"reader-token").hexdigest()
    lines = [
        f'tenants {{ name: "alpha" token_sha256: "{digest}"'
        f' tokens {{ id: "dashboard" sha256: "{reader}" roles: READ }} }}',
        more,
    ]
    if audit_file is not None:
        lines.append(f'audit_log_file: "{audit_file}"')
    return "\n".join(lines)


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def brief(lines: list[dict[str, Any]]) -> list[tuple[str, str, str]]:
    return [(e["method"].split("/")[1], e["resource"], e["outcome"]) for e in lines]


def test_every_change_is_written_down(start_server: Callable[..., Server], tmp_path: Path) -> None:
    audit = tmp_path / "audit.log"
    server = start_server(config=config(audit))
    api = server.connect("alpha", TOKEN)
    values = activations_like(64, 32, 1)
    statistic = sealed_statistic(api, "s", values)
    job = create_job(api, [layer("w", 8, 32, statistic=statistic.name)])
    upload(api, job.layers[0].name, gaussian(8, 32, 1))
    wait_for_job(api, job.name)
    api.jobs.ListJobs(jobs_pb2.ListJobsRequest(parent="tenants/alpha"))
    with refused("NOT_FOUND"):
        delete_job(api, "tenants/alpha/jobs/none")
    with refused("PERMISSION_DENIED"):
        delete_statistic(api, "tenants/beta/statistics/s")
    delete_job(api, job.name)
    written = lines_of(audit)
    assert brief(written) == [
        ("StreamActivations", statistic.name, "OK"),
        ("SealStatistic", statistic.name, "OK"),
        ("CreateJob", job.name, "OK"),  # its id was the server's choice
        ("UploadWeights", job.layers[0].name, "OK"),
        ("DeleteJob", "tenants/alpha/jobs/none", "NOT_FOUND"),
        ("DeleteStatistic", "tenants/beta/statistics/s", "PERMISSION_DENIED"),
        ("DeleteJob", job.name, "OK"),
    ]
    for line in written:
        assert list(line) == FIELDS
        assert (line["tenant"], line["credential"]) == ("alpha", "token:token")
        assert line["peer"].startswith("ipv4:127.0.0.1:")
        assert bool(line["reason"]) == (line["outcome"] != "OK")


def test_every_refused_caller_is_written_down(
    start_server: Callable[..., Server], tmp_path: Path
) -> None:
    audit = tmp_path / "audit.log"
    issuer = Issuer(tmp_path / "issuer")
    server = start_server(config=config(audit, issuer.config()))
    guess = server.connect("alpha", "a-guessed-token")
    for method in METHODS:
        assert refusal_of(guess, method) is not None
    reader = server.connect("alpha", "reader-token")
    for method in METHODS:
        refusal_of(reader, method)
    jwt = issuer.key.sign(issuer.claims(roles=[]), "RS256")
    assert refusal_of(server.connect("alpha", jwt), "Jobs/GetJob") is not None
    written = lines_of(audit)
    unknown = [line for line in written if not line["tenant"]]
    assert {line["method"] for line in unknown} == {f"quantd.v1.{name}" for name in METHODS}
    assert {(line["outcome"], line["credential"]) for line in unknown} == {("UNAUTHENTICATED", "")}
    denied = [line for line in written if line["reason"] == "ROLE_REQUIRED"]
    assert {line["credential"] for line in denied} == {"token:dashboard", "jwt:trainer-7"}
    assert len(unknown) + len(denied) == len(written)
    text = audit.read_text() + "".join(server.stderr)
    for secret in (TOKEN, "a-guessed-token", "reader-token", jwt, jwt.split(".")[2]):
        assert secret not in text


def test_without_a_file_the_lines_are_in_the_log(start_server: Callable[..., Server]) -> None:
    server = start_server(config=config())
    api = server.connect("alpha", TOKEN)
    job = create_job(api, [layer("w", 8, 32)])
    lines = eventually(lambda: [e for e in server.log if e["event"] == "audit"], "an audit line")
    assert brief(lines) == [("CreateJob", job.name, "OK")]
    assert list(lines[0]) == FIELDS


def test_long_and_odd_names_are_bounded(
    start_server: Callable[..., Server], tmp_path: Path
) -> None:
    audit = tmp_path / "audit.log"
    server = start_server(config=config(audit))
    api = server.connect("alpha", TOKEN)
    for name in ("x" * 5000, 'quote" and\nnewline\x00\x1b[31m', "tenants/alpha/jobs/é\u2028"):
        with refused("INVALID_ARGUMENT"):
            delete_job(api, name)
    written = lines_of(audit)
    assert len(written) == 3
    assert all(len(line["resource"].encode()) <= 256 for line in written)
    assert len(audit.read_bytes().splitlines()) == 3


def test_guessing_does_not_fill_the_disk(
    start_server: Callable[..., Server], tmp_path: Path
) -> None:
    audit = tmp_path / "audit.log"
    server = start_server(config=config(audit))
    guess = server.connect("alpha", "a-guess")
    method = guess.channel.unary_unary("/quantd.v1.Server/GetServerInfo")
    calls = 2000
    for pending in [method.future(b"") for _ in range(calls)]:
        assert pending.exception() is not None
    with refused("UNAUTHENTICATED"):
        guess.server.GetServerInfo(server_pb2.GetServerInfoRequest())
    api = server.connect("alpha", TOKEN)
    create_job(api, [layer("w", 8, 32)])  # a known caller's line is always written
    written = lines_of(audit)
    assert written[-1]["tenant"] == "alpha"
    assert len(written) + sum(line["suppressed"] for line in written) == calls + 2
    first, last = written[0]["time"], written[-1]["time"]
    seconds = 1 + int(_seconds(last) - _seconds(first))
    assert len(written) <= 100 * (seconds + 1) + 1


def _seconds(time: str) -> float:
    hours, minutes, seconds = time[11:-1].split(":")
    return int(hours) * 3600 + int(minutes) * 60 + float(seconds)


def test_rotation(start_server: Callable[..., Server], tmp_path: Path) -> None:
    audit = tmp_path / "audit.log"
    server = start_server(config=config(audit))
    api = server.connect("alpha", TOKEN)
    stream_activations(api, "tenants/alpha/statistics/a", activations_like(8, 32, 1))
    audit.rename(tmp_path / "audit.log.1")
    assert server.reload(config(audit))["event"] == "reloaded"
    delete_statistic(api, "tenants/alpha/statistics/a")
    assert brief(lines_of(tmp_path / "audit.log.1"))[0][0] == "StreamActivations"
    assert [method for method, _, _ in brief(lines_of(audit))] == ["DeleteStatistic"]
