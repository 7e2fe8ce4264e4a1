"""Errors that this package raises: one hierarchy below `Error`.

A class per gRPC status code, so that callers catch what they can handle. The server's details
(google.rpc ErrorInfo, BadRequest, RetryInfo ...) are parsed into plain attributes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status


@dataclass(frozen=True)
class FieldViolation:
    """One wrong field of a request.

    field: path in the request, e.g. `layers[2].cols`.
    description: what was expected and what came.
    """

    field: str
    description: str


class Error(Exception):
    """Anything that went wrong with a call.

    code: gRPC status code by name, e.g. `INVALID_ARGUMENT`.
    message: for people.
    reason: machine-readable, UPPER_SNAKE, from the server's ErrorInfo; empty where it sent none.
    metadata: of the ErrorInfo.
    field_violations: fields that were wrong (INVALID_ARGUMENT), quotas (RESOURCE_EXHAUSTED) or
      preconditions (FAILED_PRECONDITION) that were not met.
    retry_after_s: how long the server asks to wait before a retry; None where it did not say.
    repeated: the call had been made before, and its answer was lost: what it asks for may be done.
    """

    code: str = "UNKNOWN"

    def __init__(
        self,
        message: str,
        *,
        reason: str = "",
        metadata: Mapping[str, str] | None = None,
        field_violations: Sequence[FieldViolation] = (),
        retry_after_s: float | None = None,
        code: str | None = None,
    ) -> None:
        self.code = code or type(self).code
        self.message = message
        self.reason = reason
        self.metadata = dict(metadata or {})
        self.field_violations = tuple(field_violations)
        self.retry_after_s = retry_after_s
        self.repeated = False
        super().__init__(self._text())

    def _text(self) -> str:
        text = f"{self.code}: {self.message}" if self.message else self.code
        if self.reason:
            text += f" [{self.reason}]"
        for violation in self.field_violations:
            # Servers often repeat the only violation as the message.
            if violation.description and violation.description not in self.message:
                text += f"\n  {violation.field}: {violation.description}"
        return text


class InvalidArgument(Error, ValueError):
    """A shape, dtype, name or value that is wrong; also raised before anything is sent."""

    code = "INVALID_ARGUMENT"


class NotFound(Error, LookupError):
    """No such job, layer, statistic or artifact."""

    code = "NOT_FOUND"


class AlreadyExists(Error):
    """The name is taken."""

    code = "ALREADY_EXISTS"


class PermissionDenied(Error, PermissionError):
    """The name belongs to another tenant."""

    code = "PERMISSION_DENIED"


class Unauthenticated(Error, PermissionError):
    """Missing or unknown credentials."""

    code = "UNAUTHENTICATED"


class ResourceExhausted(Error):
    """A quota or limit, or the server's disk is full."""

    code = "RESOURCE_EXHAUSTED"


class FailedPrecondition(Error):
    """Something is missing first: a sealed statistic, a finished layer ..."""

    code = "FAILED_PRECONDITION"


class Aborted(Error):
    """Another writer holds the stream or upload."""

    code = "ABORTED"


class OutOfRange(Error):
    """An offset or sequence number that does not continue what the server has."""

    code = "OUT_OF_RANGE"


class Unimplemented(Error, NotImplementedError):
    """This server cannot do that."""

    code = "UNIMPLEMENTED"


class Unavailable(Error, ConnectionError):
    """No connection, or the server is draining, and retries did not help."""

    code = "UNAVAILABLE"


class DeadlineExceeded(Error, TimeoutError):
    """The call or the wait took longer than its timeout."""

    code = "DEADLINE_EXCEEDED"


class Cancelled(Error):
    """The call or the job was cancelled."""

    code = "CANCELLED"


class DataLoss(Error):
    """Stored or transferred bytes do not match their digest."""

    code = "DATA_LOSS"


class Internal(Error):
    """A bug in the server."""

    code = "INTERNAL"


class JobFailed(Error):
    """At least one layer of a job failed; `layer_errors` has each one's error by layer id."""

    code = "FAILED"

    def __init__(self, job: str, layer_errors: Mapping[str, Error]) -> None:
        self.layer_errors = dict(layer_errors)
        lines = "".join(f"\n  {layer}: {error}" for layer, error in self.layer_errors.items())
        super().__init__(f"{len(self.layer_errors)} layer(s) of {job} failed{lines}")


_BY_CODE: dict[str, type[Error]] = {
    error.code: error
    for error in (
        InvalidArgument,
        NotFound,
        AlreadyExists,
        PermissionDenied,
        Unauthenticated,
        ResourceExhausted,
        FailedPrecondition,
        Aborted,
        OutOfRange,
        Unimplemented,
        Unavailable,
        DeadlineExceeded,
        Cancelled,
        DataLoss,
        Internal,
    )
}
_CODE_NAMES: dict[int, str] = {code.value[0]: code.name for code in grpc.StatusCode}


def from_rpc_error(error: grpc.RpcError) -> Error:
    """The `Error` for a failed gRPC call, with the server's details."""
    call: Any = error
    try:
        status = rpc_status.from_call(call)
    except (AttributeError, ValueError, DecodeError):  # none, garbled, or contradicting
        status = None
    if status is not None:
        return from_status(status)
    code = call.code().name
    return _class_for(code)(call.details() or "", code=code)


def from_status(status: status_pb2.Status) -> Error:
    """The `Error` for a google.rpc.Status, as a failed layer carries it."""
    reason = ""
    metadata: dict[str, str] = {}
    violations: list[FieldViolation] = []
    retry_after_s: float | None = None
    for packed in status.details:
        if packed.Is(error_details_pb2.ErrorInfo.DESCRIPTOR):
            info = error_details_pb2.ErrorInfo()
            packed.Unpack(info)
            reason = info.reason
            metadata = dict(info.metadata)
        elif packed.Is(error_details_pb2.BadRequest.DESCRIPTOR):
            request = error_details_pb2.BadRequest()
            packed.Unpack(request)
            violations += [FieldViolation(v.field, v.description) for v in request.field_violations]
        elif packed.Is(error_details_pb2.QuotaFailure.DESCRIPTOR):
            quota = error_details_pb2.QuotaFailure()
            packed.Unpack(quota)
            violations += [FieldViolation(v.subject, v.description) for v in quota.violations]
        elif packed.Is(error_details_pb2.PreconditionFailure.DESCRIPTOR):
            failure = error_details_pb2.PreconditionFailure()
            packed.Unpack(failure)
            violations += [FieldViolation(v.subject, v.description) for v in failure.violations]
        elif packed.Is(error_details_pb2.RetryInfo.DESCRIPTOR):
            retry = error_details_pb2.RetryInfo()
            packed.Unpack(retry)
            retry_after_s = retry.retry_delay.seconds + retry.retry_delay.nanos * 1e-9
    code = _CODE_NAMES.get(status.code, "UNKNOWN")
    return _class_for(code)(
        status.message,
        reason=reason,
        metadata=metadata,
        field_violations=violations,
        retry_after_s=retry_after_s,
        code=code,
    )


def _class_for(code: str) -> type[Error]:
    return _BY_CODE.get(code, Error)
