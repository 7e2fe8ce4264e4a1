"""quantd: quantize the layers of a language model on a remote server.

import quantd

with quantd.connect("127.0.0.1:7741") as client:
    layer = quantd.LayerSpec("mlp.up", rows=11008, cols=4096, dtype="bf16", statistic="mlp-in")
    job = client.create_job(quantd.Recipe("mxfp4", "wush"), [layer])
    client.upload_weights(job, "mlp.up", weight)
    client.stream_activations("mlp-in", activations)
    client.seal_statistic("mlp-in")
    client.wait(job)
    quantized = client.fetch(job, "mlp.up")
    print(quantized.report["relative_output_error_weight_and_activation"])
    y = quantized(x)  # as an engine would compute it; quantized.dequantize() is the matrix
"""

from quantd.activations import ActivationStream
from quantd.client import Client, connect
from quantd.dtypes import DType, from_bfloat16, to_bfloat16
from quantd.errors import (
    Aborted,
    AlreadyExists,
    Cancelled,
    DataLoss,
    DeadlineExceeded,
    Error,
    FailedPrecondition,
    FieldViolation,
    Internal,
    InvalidArgument,
    JobFailed,
    NotFound,
    OutOfRange,
    PermissionDenied,
    ResourceExhausted,
    Unauthenticated,
    Unavailable,
    Unimplemented,
)
from quantd.plan import Plan, PlannedLayer
from quantd.quantized_layer import QuantizedLayer, load
from quantd.recipe import Gptq, Recipe
from quantd.resources import (
    Device,
    Job,
    JobEstimate,
    Layer,
    LayerSpec,
    Priority,
    QuotaWait,
    ServerInfo,
    Statistic,
    StatisticKind,
)
from quantd.statistics import Moment
from quantd.transport import Tls

__all__ = [
    "Aborted",
    "ActivationStream",
    "AlreadyExists",
    "Cancelled",
    "Client",
    "DType",
    "DataLoss",
    "DeadlineExceeded",
    "Device",
    "Error",
    "FailedPrecondition",
    "FieldViolation",
    "Gptq",
    "Internal",
    "InvalidArgument",
    "Job",
    "JobEstimate",
    "JobFailed",
    "Layer",
    "LayerSpec",
    "Moment",
    "NotFound",
    "OutOfRange",
    "PermissionDenied",
    "Plan",
    "PlannedLayer",
    "Priority",
    "QuantizedLayer",
    "QuotaWait",
    "Recipe",
    "ResourceExhausted",
    "ServerInfo",
    "Statistic",
    "StatisticKind",
    "Tls",
    "Unauthenticated",
    "Unavailable",
    "Unimplemented",
    "connect",
    "from_bfloat16",
    "load",
    "to_bfloat16",
]
