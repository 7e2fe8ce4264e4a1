"""The channel to one server: credentials, retries and resource names."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import grpc

from quantd.errors import (
    Aborted,
    Cancelled,
    Error,
    NotFound,
    ResourceExhausted,
    Unavailable,
    from_rpc_error,
)

Response = TypeVar("Response")

#: Bytes of payload in one message; messages stay below the 4 MiB that stock gRPC accepts.
CHUNK_BYTES = 1 << 20

#: What gRPC says when this side ended the call.
_OWN_CANCELLATIONS = ("Channel closed", "Locally cancelled")

_BACKOFF_FIRST_S = 0.1
_BACKOFF_LAST_S = 5.0


@dataclass(frozen=True)
class Tls:
    """TLS to the server. All files are PEM.

    root_certificates: who is trusted to sign the server's certificate; None: the system's roots.
    certificate_chain, private_key: the client's own, for mTLS; both or neither.
    """

    root_certificates: Path | None = None
    certificate_chain: Path | None = None
    private_key: Path | None = None

    def credentials(self) -> Any:
        """The gRPC channel credentials. Reads the files."""

        def content(path: Path | None) -> bytes | None:
            return None if path is None else Path(path).read_bytes()

        return grpc.ssl_channel_credentials(
            content(self.root_certificates),
            content(self.private_key),
            content(self.certificate_chain),
        )


class Backoff:
    """Waits between attempts: exponential with jitter, until `timeout_s` has passed in total.

    An attempt that got somewhere calls `reset`, so that only a time without progress counts.
    """

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self.reset()

    def reset(self) -> None:
        """Starts over: the call has made progress."""
        self._deadline = time.monotonic() + self._timeout_s
        self._delay_s = _BACKOFF_FIRST_S

    def next_delay_s(self, error: Error) -> float:
        """How long to sleep before the next attempt; raises `error` where there is no time left."""
        delay_s = self._delay_s * random.uniform(0.5, 1.0)
        if error.retry_after_s is not None:
            delay_s = max(delay_s, error.retry_after_s)
        if time.monotonic() + delay_s > self._deadline:
            raise error
        self._delay_s = min(self._delay_s * 2, _BACKOFF_LAST_S)
        return delay_s

    def wait(self, error: Error) -> None:
        """Sleeps before the next attempt; raises `error` where there is no time left."""
        time.sleep(self.next_delay_s(error))


def is_transient(error: Error) -> bool:
    """Whether the same call may succeed later: no connection, or the server asks for a retry.

    A server that shuts down ends its calls with CANCELLED, without details; so does this client.
    """
    if isinstance(error, Unavailable):
        return True
    if isinstance(error, Cancelled):
        return not error.reason and not any(own in error.message for own in _OWN_CANCELLATIONS)
    return isinstance(error, ResourceExhausted) and error.retry_after_s is not None


def is_transient_for_writer(error: Error) -> bool:
    """As `is_transient`; also the moment in which the server still sees a lost writer's stream."""
    return is_transient(error) or isinstance(error, Aborted)


class Transport:
    """A channel with the caller's credentials. Thread-safe.

    retry_timeout_s: how long a call without progress is retried while the server is unavailable.
    """

    def __init__(
        self,
        address: str,
        token: str | None,
        tls: Tls | None,
        retry_timeout_s: float,
    ) -> None:
        options = [
            ("grpc.max_receive_message_length", 4 << 20),
            # Reconnect quickly: the retries here decide when to give up.
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.min_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", 2000),
            # Each client has its own connection, however many a process opens.
            ("grpc.use_local_subchannel_pool", 1),
        ]
        if tls is None:
            self.channel = grpc.insecure_channel(address, options)
        else:
            self.channel = grpc.secure_channel(address, tls.credentials(), options)
        self.address = address
        self.retry_timeout_s = retry_timeout_s
        self.metadata: Sequence[tuple[str, str]] = (
            () if token is None else (("authorization", f"Bearer {token}"),)
        )

    def close(self) -> None:
        """Ends every call."""
        self.channel.close()

    def start(self, method: Callable[..., Response], request: Any, **options: Any) -> Response:
        """Starts a streaming call; errors come when it is read, as grpc.RpcError."""
        return method(request, metadata=self.metadata, **options)

    def call(self, method: Callable[..., Response], request: Any) -> Response:
        """A unary call, retried while the server is unavailable.

        Raises:
            Error: what the server answered; `repeated` where it was asked before.

        """
        backoff = Backoff(self.retry_timeout_s)
        repeated = False
        while True:
            try:
                return method(request, metadata=self.metadata)
            except grpc.RpcError as rpc_error:
                error = from_rpc_error(rpc_error)
                error.repeated = repeated
                if not is_transient(error):
                    raise error from None
                backoff.wait(error)
                repeated = True

    def delete(self, method: Callable[..., Any], request: Any) -> None:
        """A call that deletes. Gone is gone: repeated after a lost answer, it finds nothing."""
        try:
            self.call(method, request)
        except NotFound as error:
            if not error.repeated:
                raise
