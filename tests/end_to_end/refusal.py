"""What a refused call has to look like, and that it left nothing behind."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import grpc
import pytest
from google.rpc import code_pb2, error_details_pb2
from grpc_status import rpc_status

from .server_process import Api, Server, eventually, seconds
from .wire import works

DOMAIN = "quantd.dev"

# Details that a code must bring beside ErrorInfo, so that a client can act on it.
_REQUIRED_DETAIL = {
    grpc.StatusCode.INVALID_ARGUMENT: error_details_pb2.BadRequest,
    grpc.StatusCode.UNAVAILABLE: error_details_pb2.RetryInfo,
    grpc.StatusCode.FAILED_PRECONDITION: error_details_pb2.PreconditionFailure,
}


@dataclass
class Refusal:
    """A refused call, taken apart. Filled when the `with` block of `refused` ends."""

    code: grpc.StatusCode = grpc.StatusCode.OK
    message: str = ""
    reason: str = ""
    metadata: dict[str, str] = field(default_factory=dict)
    fields: dict[str, str] = field(default_factory=dict)  # BadRequest: field -> description
    quota: list[str] = field(default_factory=list)
    retry_seconds: float | None = None
    preconditions: list[str] = field(default_factory=list)
    detail_types: list[str] = field(default_factory=list)


def take_apart(error: grpc.RpcError) -> Refusal:
    """Reads the google.rpc.Status of a failed call and checks what every error must have."""
    refusal = Refusal(code=error.code(), message=error.details() or "")
    status = rpc_status.from_call(error)
    assert status is not None, f"no google.rpc.Status beside {refusal.code}: {refusal.message}"
    assert status.code == refusal.code.value[0]
    assert status.message == refusal.message
    infos = []
    for detail in status.details:
        refusal.detail_types.append(detail.TypeName())
        info = error_details_pb2.ErrorInfo()
        bad = error_details_pb2.BadRequest()
        quota = error_details_pb2.QuotaFailure()
        retry = error_details_pb2.RetryInfo()
        precondition = error_details_pb2.PreconditionFailure()
        if detail.Unpack(info):
            infos.append(info)
        elif detail.Unpack(bad):
            refusal.fields.update({v.field: v.description for v in bad.field_violations})
        elif detail.Unpack(quota):
            refusal.quota += [f"{v.subject}: {v.description}" for v in quota.violations]
        elif detail.Unpack(retry):
            refusal.retry_seconds = retry.retry_delay.ToTimedelta().total_seconds()
        elif detail.Unpack(precondition):
            refusal.preconditions += [f"{v.type} {v.subject}" for v in precondition.violations]
    assert len(infos) == 1, f"{len(infos)} ErrorInfo in {refusal}"
    refusal.reason = infos[0].reason
    refusal.metadata = dict(infos[0].metadata)
    assert infos[0].domain == DOMAIN
    assert re.fullmatch(r"[A-Z][A-Z0-9_]{2,62}", refusal.reason), refusal.reason
    required = _REQUIRED_DETAIL.get(refusal.code)
    if required is not None:
        name = required.DESCRIPTOR.full_name
        assert name in refusal.detail_types, f"{refusal.code} without {name}: {refusal}"
    return refusal


def _segments(path: str) -> list[str]:
    """job.layers[3].cols: job, layers, cols."""
    return re.sub(r"\[\d+\]", "", path).split(".")


@contextmanager
def refused(
    code: str,
    reason: str | None = None,
    field: str | None = None,
    says: Sequence[object] = (),
) -> Iterator[Refusal]:
    """The block's call must fail with `code`, and with details that a person can act on.

    `field` is a segment of the offending field's path in BadRequest; every one of `says` must occur
    in the message, which has to name what was expected and what came.
    """
    refusal = Refusal()
    with pytest.raises(grpc.RpcError) as caught:
        yield refusal
    refusal.__dict__.update(take_apart(caught.value).__dict__)
    assert refusal.code.name == code, refusal
    if reason is not None:
        assert refusal.reason == reason, refusal
    if field is not None:
        assert any(field in _segments(path) for path in refusal.fields), refusal
        assert all(refusal.fields.values()), refusal
    text = " ".join([refusal.message, *refusal.fields.values()])
    for expected in says:
        assert str(expected) in text, f"{expected!r} is not in {text!r}"


def code_name(value: int) -> str:
    return code_pb2.Code.Name(value)


@contextmanager
def unharmed(server: Server, api: Api | None = None, within: float = 5.0) -> Iterator[None]:
    """After the block the server stores what it stored before, has no file open that it had not,
    and still works."""
    api = api or server.api
    before = server.stored(api)
    yield
    assert server.running(), "".join(server.stderr[-40:])

    def settled() -> bool:
        now = server.stored(api)
        new_files = {k: v for k, v in now.files.items() if before.files.get(k) != v}
        return (
            now.jobs == before.jobs
            and now.statistics == before.statistics
            and not new_files
            and set(now.open_files) <= set(before.open_files)
        )

    try:
        eventually(settled, "the server stores what it stored before", within)
    except AssertionError:
        now = server.stored(api)
        assert now == before
        raise
    works(api)


__all__ = ["DOMAIN", "Refusal", "code_name", "refused", "seconds", "take_apart", "unharmed"]
