"""Server errors become exceptions that say everything the server said."""

from __future__ import annotations

from typing import Any

import grpc
import pytest
from google.protobuf.any_pb2 import Any as PackedAny
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

import quantd
from quantd.errors import from_rpc_error, from_status
from quantd.transport import Backoff, is_transient


def packed(message: Message) -> PackedAny:
    wrapped = PackedAny()
    wrapped.Pack(message)
    return wrapped


def status(code: grpc.StatusCode, message: str, *details: Message) -> status_pb2.Status:
    return status_pb2.Status(
        code=code.value[0], message=message, details=[packed(detail) for detail in details]
    )


class FailedCall(grpc.RpcError):  # type: ignore[misc]
    def __init__(self, code: grpc.StatusCode, message: str, trailers: Any = ()) -> None:
        self._code, self._message, self._trailers = code, message, trailers

    def code(self) -> grpc.StatusCode:
        return self._code

    def details(self) -> str:
        return self._message

    def trailing_metadata(self) -> Any:
        return self._trailers


def test_bad_request() -> None:
    violation = error_details_pb2.BadRequest.FieldViolation(
        field="layers[0].cols", description="expected a multiple of 32; got 33"
    )
    error = from_status(
        status(
            grpc.StatusCode.INVALID_ARGUMENT,
            "the recipe does not fit",
            error_details_pb2.ErrorInfo(
                reason="BAD_GEOMETRY", domain="quantd.dev", metadata={"cols": "33"}
            ),
            error_details_pb2.BadRequest(field_violations=[violation]),
        )
    )
    assert isinstance(error, quantd.InvalidArgument)
    assert isinstance(error, ValueError)
    assert error.reason == "BAD_GEOMETRY"
    assert error.metadata == {"cols": "33"}
    assert error.field_violations[0].field == "layers[0].cols"
    assert str(error) == (
        "INVALID_ARGUMENT: the recipe does not fit [BAD_GEOMETRY]\n"
        "  layers[0].cols: expected a multiple of 32; got 33"
    )


def test_quota_with_retry() -> None:
    violation = error_details_pb2.QuotaFailure.Violation(subject="streams", description="64 open")
    error = from_status(
        status(
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            "quota",
            error_details_pb2.QuotaFailure(violations=[violation]),
            error_details_pb2.RetryInfo(retry_delay=Duration(seconds=2, nanos=500_000_000)),
        )
    )
    assert isinstance(error, quantd.ResourceExhausted)
    assert error.retry_after_s == 2.5
    assert is_transient(error)
    assert "streams: 64 open" in str(error)


def test_precondition() -> None:
    violation = error_details_pb2.PreconditionFailure.Violation(
        type="STATE", subject="statistic", description="has no tokens"
    )
    error = from_status(
        status(
            grpc.StatusCode.FAILED_PRECONDITION,
            "cannot seal",
            error_details_pb2.PreconditionFailure(violations=[violation]),
        )
    )
    assert isinstance(error, quantd.FailedPrecondition)
    assert error.field_violations == (quantd.FieldViolation("statistic", "has no tokens"),)
    assert not is_transient(error)


@pytest.mark.parametrize("code", [c for c in grpc.StatusCode if c is not grpc.StatusCode.OK])
def test_every_code_is_an_error(code: grpc.StatusCode) -> None:
    error = from_rpc_error(FailedCall(code, "because"))
    assert isinstance(error, quantd.Error)
    assert error.code == code.name
    assert str(error) == f"{code.name}: because"


def test_details_come_from_the_trailers() -> None:
    sent = status(
        grpc.StatusCode.NOT_FOUND, "no such job", error_details_pb2.ErrorInfo(reason="JOB_UNKNOWN")
    )
    trailers = (("grpc-status-details-bin", sent.SerializeToString()),)
    error = from_rpc_error(FailedCall(grpc.StatusCode.NOT_FOUND, "no such job", trailers))
    assert isinstance(error, quantd.NotFound)
    assert error.reason == "JOB_UNKNOWN"


def test_garbage_in_the_trailers_is_ignored() -> None:
    trailers = (("grpc-status-details-bin", b"\xff\xff\xff"),)
    error = from_rpc_error(FailedCall(grpc.StatusCode.NOT_FOUND, "no such job", trailers))
    assert isinstance(error, quantd.NotFound)


def test_backoff_waits_as_long_as_the_server_asks() -> None:
    backoff = Backoff(10.0)
    assert backoff.next_delay_s(quantd.Unavailable("", retry_after_s=3.0)) == 3.0
    with pytest.raises(quantd.Unavailable):
        backoff.next_delay_s(quantd.Unavailable("", retry_after_s=11.0))


def test_backoff_grows() -> None:
    backoff = Backoff(1000.0)
    delays = [backoff.next_delay_s(quantd.Unavailable("")) for _ in range(12)]
    assert delays[0] <= 0.1
    assert 2.5 <= delays[-1] <= 5.0
