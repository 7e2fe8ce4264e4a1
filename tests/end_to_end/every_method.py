"""Every method of the API, found in its descriptors: what a table of tests goes over."""

from __future__ import annotations

import grpc
from google.protobuf.descriptor import MethodDescriptor
from quantd.v1 import (
    calibration_pb2,
    jobs_pb2,
    quantize_pb2,
    results_pb2,
    server_pb2,
    weights_pb2,
)

from .server_process import Api

METHODS: dict[str, MethodDescriptor] = {
    f"{service.name}/{method.name}": method
    for file in (
        calibration_pb2,
        jobs_pb2,
        quantize_pb2,
        results_pb2,
        server_pb2,
        weights_pb2,
    )
    for service in file.DESCRIPTOR.services_by_name.values()
    for method in service.methods
}


def call_with_nothing(api: Api, name: str) -> None:
    """Calls a method with one empty message. Raises what the server answers."""
    method = METHODS[name]
    path = f"/quantd.v1.{name}"
    if method.client_streaming and method.server_streaming:
        for _ in api.channel.stream_stream(path)(iter([b""])):
            pass
    elif method.client_streaming:
        api.channel.stream_unary(path)(iter([b""]))
    elif method.server_streaming:
        for _ in api.channel.unary_stream(path)(b""):
            pass
    else:
        api.channel.unary_unary(path)(b"")


def refusal_of(api: Api, name: str) -> grpc.RpcError | None:
    """What the server answers to `call_with_nothing`; None if it answers."""
    try:
        call_with_nothing(api, name)
    except grpc.RpcError as error:
        return error
    return None
