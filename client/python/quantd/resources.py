"""What the server knows: jobs, layers, statistics, and what it can do. Plain read-only values."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from google.protobuf.timestamp_pb2 import Timestamp

from quantd import dtypes
from quantd.dtypes import DType
from quantd.errors import Error, InvalidArgument, from_status
from quantd.recipe import Recipe
from quantd.v1 import calibration_pb2, jobs_pb2, recipe_pb2, server_pb2

JobState = Literal["ACCEPTING", "QUEUED", "RUNNING", "SUCCEEDED", "FAILED", "CANCELLED", "UNKNOWN"]
LayerState = Literal["WAITING", "QUEUED", "RUNNING", "SUCCEEDED", "FAILED", "CANCELLED", "UNKNOWN"]
MomentLayout = Literal["full", "block-diagonal"]
#: What a statistic sums over its tokens: x x^T; p x x^T, p being a token's weight; x xhat^T;
#: (r - rhat) xhat^T. x and xhat are a layer's inputs in the original and in the quantized model, r
#: and rhat the residual stream beside its outputs.
StatisticKind = Literal["second-moment", "weighted", "cross-moment", "residual-moment"]

_KINDS: dict[StatisticKind, calibration_pb2.StatisticKind] = {
    "second-moment": calibration_pb2.SECOND_MOMENT,
    "weighted": calibration_pb2.WEIGHTED,
    "cross-moment": calibration_pb2.CROSS_MOMENT,
    "residual-moment": calibration_pb2.RESIDUAL_MOMENT,
}

Priority = Literal["low", "normal", "high"]

_PRIORITIES: dict[Priority, jobs_pb2.Priority] = {
    "low": jobs_pb2.PRIORITY_LOW,
    "normal": jobs_pb2.PRIORITY_NORMAL,
    "high": jobs_pb2.PRIORITY_HIGH,
}

ENDED: frozenset[str] = frozenset({"SUCCEEDED", "FAILED", "CANCELLED"})


def kind_to_proto(kind: StatisticKind) -> calibration_pb2.StatisticKind:
    """The wire's value of a kind.

    Raises:
        InvalidArgument: no such kind.

    """
    if kind not in _KINDS:
        raise InvalidArgument(f"kind: expected one of {', '.join(_KINDS)}, came {kind!r}")
    return _KINDS[kind]


def priority_to_proto(priority: Priority) -> jobs_pb2.Priority:
    """The wire's value of a priority.

    Raises:
        InvalidArgument: no such priority.

    """
    if priority not in _PRIORITIES:
        raise InvalidArgument(
            f"priority: expected one of {', '.join(_PRIORITIES)}, came {priority!r}"
        )
    return _PRIORITIES[priority]


def _priority(value: int) -> Priority:
    return next((name for name, known in _PRIORITIES.items() if known == value), "normal")


def kind_from_proto(kind: int) -> StatisticKind:
    """The kind of a wire value; unset means a second moment."""
    return next((name for name, value in _KINDS.items() if value == kind), "second-moment")


@dataclass(frozen=True)
class LayerSpec:
    """One weight matrix W (rows = outputs, cols = inputs) that a job is to quantize.

    layer_id: 1..256 characters of [A-Za-z0-9._-], unique in the job.
    dtype: of the weight that will be uploaded.
    statistic: name or short id of the (weighted) second moment that calibrates it; it need not
      exist yet. Empty: no calibration data.
    second_moment_hat, cross_moment: names of the moments of drift, for methods that correct what
      the layers before this one have done to its inputs (watersic, and gptq with its asymmetric
      term); both or none.
    residual_moment: name of a residual moment, for watersic.
    fusion_group: layers with the same group share input, statistic, transform and global scale.
    recipe: where it differs from the job's.
    weight_of: full name of a layer whose weight this one takes; nothing is uploaded for it then.
    """

    layer_id: str
    rows: int
    cols: int
    dtype: DType = "f32"
    statistic: str = ""
    fusion_group: str = ""
    recipe: Recipe | None = None
    second_moment_hat: str = ""
    cross_moment: str = ""
    residual_moment: str = ""
    weight_of: str = ""


@dataclass(frozen=True)
class Layer:
    """A layer of a job as the server sees it. progress is 0..1; error only where it failed."""

    name: str
    layer_id: str
    rows: int
    cols: int
    dtype: DType
    fusion_group: str
    statistic: str
    recipe: Recipe | None
    state: LayerState
    progress: float
    stage: str
    device_seconds: float
    error: Error | None
    second_moment_hat: str = ""
    cross_moment: str = ""
    residual_moment: str = ""
    weight_of: str = ""

    @classmethod
    def from_proto(cls, layer: jobs_pb2.Layer) -> Layer:
        """The value of a message."""
        state = jobs_pb2.LayerState.Name(layer.state).removeprefix("LAYER_")
        return cls(
            name=layer.name,
            layer_id=layer.layer_id,
            rows=layer.rows,
            cols=layer.cols,
            dtype=dtypes.from_proto(layer.dtype),
            fusion_group=layer.fusion_group,
            statistic=layer.statistic,
            recipe=Recipe.from_proto(layer.recipe) if layer.recipe.format else None,
            state=state if layer.state else "UNKNOWN",  # type: ignore[arg-type]
            progress=layer.progress,
            stage=layer.stage,
            device_seconds=layer.device_seconds,
            error=from_status(layer.error) if layer.HasField("error") else None,
            second_moment_hat=layer.second_moment_hat,
            cross_moment=layer.cross_moment,
            residual_moment=layer.residual_moment,
            weight_of=layer.weight_of,
        )


@dataclass(frozen=True)
class QuotaWait:
    """Why ready layers of a job wait: the tenant's limit that is used up, and until when.

    until: None where layers of the tenant have to end first.
    """

    quota: str
    description: str
    until: datetime | None


@dataclass(frozen=True)
class Job:
    """A job: its recipe, its layers and how far it has come.

    deadline: when it passes, layers that have not ended fail.
    queue_position: of its next layer; 0 where none is ready and waits.
    eta_seconds: until its queued and running layers are done, if estimates come true.
    quota_wait: set while its layers wait for a quota of the tenant.
    """

    name: str
    recipe: Recipe | None
    layers: tuple[Layer, ...]
    state: JobState
    finished_layers: int
    display_name: str
    create_time: datetime | None
    end_time: datetime | None
    priority: Priority = "normal"
    deadline: datetime | None = None
    queue_position: int = 0
    eta_seconds: float | None = None
    quota_wait: QuotaWait | None = None

    @property
    def job_id(self) -> str:
        """The last segment of the name."""
        return self.name.rsplit("/", 1)[-1]

    @classmethod
    def from_proto(cls, job: jobs_pb2.Job) -> Job:
        """The value of a message."""
        return cls(
            name=job.name,
            recipe=Recipe.from_proto(job.recipe) if job.recipe.format else None,
            layers=tuple(Layer.from_proto(layer) for layer in job.layers),
            state=jobs_pb2.JobState.Name(job.state) if job.state else "UNKNOWN",  # type: ignore[arg-type]
            finished_layers=job.finished_layers,
            display_name=job.display_name,
            create_time=_time(job.create_time),
            end_time=_time(job.end_time),
            priority=_priority(job.priority),
            deadline=_time(job.deadline),
            queue_position=job.queue_position,
            eta_seconds=job.eta_seconds if job.HasField("eta_seconds") else None,
            quota_wait=QuotaWait(
                job.quota_wait.quota, job.quota_wait.description, _time(job.quota_wait.until)
            )
            if job.HasField("quota_wait")
            else None,
        )


@dataclass(frozen=True)
class JobEstimate:
    """What a job will take: peak device bytes (largest layer), device seconds, output bytes."""

    peak_bytes: int
    device_seconds: float
    output_bytes: int


@dataclass(frozen=True)
class Statistic:
    """A moment on the server. tokens counts what is durable; digest names the data.

    paired_cols: rows of a cross or residual moment's matrix, 0 for the other kinds.
    """

    name: str
    layout: MomentLayout
    block_size: int
    cols: int
    tokens: int
    sealed: bool
    sample_rows: int
    digest: str
    size_bytes: int
    create_time: datetime | None
    kind: StatisticKind = "second-moment"
    paired_cols: int = 0

    @classmethod
    def from_proto(cls, statistic: calibration_pb2.Statistic) -> Statistic:
        """The value of a message."""
        diagonal = statistic.layout == calibration_pb2.BLOCK_DIAGONAL
        return cls(
            name=statistic.name,
            layout="block-diagonal" if diagonal else "full",
            block_size=statistic.block_size,
            cols=statistic.cols,
            tokens=statistic.tokens,
            sealed=statistic.state == calibration_pb2.SEALED,
            sample_rows=statistic.sample_rows,
            digest=statistic.digest,
            size_bytes=statistic.size_bytes,
            create_time=_time(statistic.create_time),
            kind=kind_from_proto(statistic.kind),
            paired_cols=statistic.paired_cols,
        )


@dataclass(frozen=True)
class Device:
    """Something that layers run on."""

    name: str
    description: str
    memory_bytes: int
    running_layers: int
    uuid: str = ""  # of a GPU
    #: Share of the last second or less in which it computed, 0..1; None where nobody measures it.
    utilisation: float | None = None


@dataclass(frozen=True)
class ServerInfo:
    """What this server is and can do; limits by name, as in the API."""

    version: str
    tenant: str
    devices: tuple[Device, ...]
    formats: tuple[str, ...]
    transforms: tuple[str, ...]
    methods: tuple[str, ...]
    limits: dict[str, int]

    @classmethod
    def from_proto(cls, info: server_pb2.ServerInfo) -> ServerInfo:
        """The value of a message."""
        return cls(
            version=info.version,
            tenant=info.tenant,
            devices=tuple(
                Device(
                    name=d.name,
                    description=d.description,
                    memory_bytes=d.memory_bytes,
                    running_layers=d.running_layers,
                    uuid=d.uuid,
                    utilisation=d.utilisation if d.HasField("utilisation") else None,
                )
                for d in info.devices
            ),
            formats=tuple(recipe_pb2.Format.Name(f).lower() for f in info.formats),
            transforms=tuple(recipe_pb2.Transform.Name(t).lower() for t in info.transforms),
            methods=tuple(recipe_pb2.Method.Name(m).lower() for m in info.methods),
            limits={field.name: value for field, value in info.limits.ListFields()},
        )


def _time(timestamp: Timestamp) -> datetime | None:
    if not timestamp.seconds:
        return None
    return timestamp.ToDatetime(UTC)
