"""The client: one object per server and caller."""

from __future__ import annotations

import json
import threading
import uuid
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from types import TracebackType
from typing import Any, Self

import grpc
from numpy.typing import NDArray

from quantd import cuda_region, dtypes, quantized_layer
from quantd.activations import CUDA_IPC_BYTES, ActivationStream, make_header, rows_of
from quantd.dtypes import DType
from quantd.errors import (
    AlreadyExists,
    Cancelled,
    DeadlineExceeded,
    Error,
    InvalidArgument,
    JobFailed,
    Unavailable,
    from_rpc_error,
)
from quantd.plan import Plan, default_rates, measuring_layers, planned_layers
from quantd.progress import ProgressBar
from quantd.quantized_layer import QuantizedLayer
from quantd.recipe import Format, Method, Recipe, Transform
from quantd.resources import (
    ENDED,
    Job,
    JobEstimate,
    LayerSpec,
    Priority,
    ServerInfo,
    Statistic,
    StatisticKind,
    priority_to_proto,
)
from quantd.results import read_artifact
from quantd.statistics import Moment, export_moment, import_moment
from quantd.transport import Backoff, Tls, Transport, is_transient
from quantd.v1 import (
    calibration_pb2,
    calibration_pb2_grpc,
    jobs_pb2,
    jobs_pb2_grpc,
    quantize_pb2,
    quantize_pb2_grpc,
    results_pb2,
    results_pb2_grpc,
    server_pb2,
    server_pb2_grpc,
)
from quantd.weights import upload


def connect(
    address: str,
    token: str | None = None,
    tls: Tls | None = None,
    *,
    progress: bool | None = None,
    retry_timeout_s: float = 60.0,
) -> Client:
    """A client of the server at `address` (HOST:PORT). Connects with the first call.

    Args:
        address: HOST:PORT of the gRPC endpoint.
        token: bearer token; sent in the clear where `tls` is None.
        tls: TLS, and mTLS with a client certificate; None: plain text.
        progress: progress bars on stderr; None: where it is a terminal.
        retry_timeout_s: how long a call that gets nowhere is repeated while the server is
            unavailable. Uploads, streams and downloads continue where they were.

    """
    return Client(Transport(address, token, tls, retry_timeout_s), progress)


class Client:
    """Calls to one server as one caller. Thread-safe. Use as a context manager, or `close` it.

    Jobs and statistics are named by their short id or their full resource name
    (`tenants/{tenant}/jobs/{job}`); methods that need one take either.
    Every method raises a `quantd.Error` (see `quantd.errors`) when the server refuses.
    """

    def __init__(self, transport: Transport, progress: bool | None) -> None:
        self._transport = transport
        self._progress = progress
        self._tenant: str | None = None
        self._tenant_lock = threading.Lock()
        channel = transport.channel
        self._jobs = jobs_pb2_grpc.JobsStub(channel)
        self._calibration = calibration_pb2_grpc.CalibrationStub(channel)
        self._results = results_pb2_grpc.ResultsStub(channel)
        self._quantize = quantize_pb2_grpc.QuantizeStub(channel)
        self._server = server_pb2_grpc.ServerStub(channel)

    def close(self) -> None:
        """Ends every call of this client."""
        self._transport.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    # Server.

    def get_server_info(self) -> ServerInfo:
        """Version, devices, formats, transforms, methods and limits."""
        info = self._transport.call(self._server.GetServerInfo, server_pb2.GetServerInfoRequest())
        return ServerInfo.from_proto(info)

    @property
    def tenant(self) -> str:
        """The tenant that the caller's credentials belong to."""
        with self._tenant_lock:
            if self._tenant is None:
                self._tenant = self.get_server_info().tenant
            return self._tenant

    # Jobs.

    def create_job(
        self,
        recipe: Recipe,
        layers: Sequence[LayerSpec],
        *,
        job_id: str = "",
        display_name: str = "",
        request_id: str | None = None,
        priority: Priority = "normal",
        deadline: datetime | None = None,
    ) -> Job:
        """Creates a job. Nothing else has to be started: a layer runs once its inputs are there.

        Args:
            recipe: for every layer without its own.
            layers: at least one; geometry is checked before anything is uploaded.
            job_id: [a-z0-9-]{1,63}; chosen by the server when empty.
            display_name: free text.
            request_id: calls with the same value create one job; default: a fresh one, so that
                the retries inside this call are safe.
            priority: among the jobs of the same tenant.
            deadline: when it passes, layers that have not ended fail; with a time zone.

        Raises:
            InvalidArgument: a recipe that does not fit a layer; `field_violations` says which.
            AlreadyExists: the job_id is taken.

        """
        request = self._create_request(recipe, layers, job_id, display_name)
        request.request_id = request_id or uuid.uuid4().hex
        request.job.priority = priority_to_proto(priority)
        if deadline is not None:
            if deadline.tzinfo is None:
                raise InvalidArgument(
                    "deadline: expected a time with a time zone, came one without"
                )
            request.job.deadline.FromDatetime(deadline)
        response = self._transport.call(self._jobs.CreateJob, request)
        return Job.from_proto(response.job)

    def estimate_job(self, recipe: Recipe, layers: Sequence[LayerSpec]) -> JobEstimate:
        """What `create_job` would take; checks everything and creates nothing."""
        request = self._create_request(recipe, layers, "", "")
        request.validate_only = True
        estimate = self._transport.call(self._jobs.CreateJob, request).estimate
        return JobEstimate(estimate.peak_bytes, estimate.device_seconds, estimate.output_bytes)

    def get_job(self, job: str | Job) -> Job:
        """The job as it is now."""
        request = jobs_pb2.GetJobRequest(name=self._job_name(job))
        return Job.from_proto(self._transport.call(self._jobs.GetJob, request))

    def list_jobs(self) -> Iterator[Job]:
        """Every job of the tenant, newest first, without layers."""
        request = jobs_pb2.ListJobsRequest(parent=self._parent())
        while True:
            response = self._transport.call(self._jobs.ListJobs, request)
            yield from (Job.from_proto(job) for job in response.jobs)
            if not response.next_page_token:
                return
            request.page_token = response.next_page_token

    def cancel_job(self, job: str | Job) -> Job:
        """Stops a job; results of finished layers stay."""
        request = jobs_pb2.CancelJobRequest(name=self._job_name(job))
        return Job.from_proto(self._transport.call(self._jobs.CancelJob, request))

    def delete_job(self, job: str | Job) -> None:
        """Deletes a job with its weights and results; statistics stay."""
        request = jobs_pb2.DeleteJobRequest(name=self._job_name(job))
        self._transport.delete(self._jobs.DeleteJob, request)

    def watch(self, job: str | Job) -> Iterator[Job]:
        """The job now and after every change until it has ended; survives reconnects."""
        for response in self._watch(self._job_name(job)):
            yield Job.from_proto(response.job)

    def wait(
        self,
        job: str | Job,
        *,
        timeout_s: float | None = None,
        check: bool = True,
        progress: bool | None = None,
    ) -> Job:
        """Returns the job once it has ended.

        Args:
            job: name, id or Job.
            timeout_s: None: as long as it takes.
            check: raise where the job did not succeed.
            progress: a bar; default: as the client.

        Raises:
            JobFailed: a layer failed; `layer_errors` says which and why.
            Cancelled: the job was cancelled.
            DeadlineExceeded: not ended within timeout_s; the job goes on.

        """
        name = self._job_name(job)
        ended: Job | None = None
        with ProgressBar(name.rsplit("/", 1)[-1], None, "layer", self._shows(progress)) as bar:
            for response in self._watch(name, timeout_s):
                bar.set_total(len(response.job.layers))
                bar.move_to(
                    sum(_layer_progress(layer) for layer in response.job.layers),
                    _wait_note(response),
                )
                ended = Job.from_proto(response.job)
        assert ended is not None
        if check:
            _raise_unless_succeeded(ended)
        return ended

    def _watch(
        self, name: str, timeout_s: float | None = None
    ) -> Iterator[jobs_pb2.WatchJobResponse]:
        request = jobs_pb2.WatchJobRequest(name=name)
        backoff = Backoff(self._transport.retry_timeout_s)
        while True:
            try:
                for response in self._transport.start(
                    self._jobs.WatchJob, request, timeout=timeout_s
                ):
                    backoff.reset()
                    yield response
                    if jobs_pb2.JobState.Name(response.job.state) in ENDED:
                        return
                backoff.wait(Unavailable("the server ended the watch early"))
            except grpc.RpcError as rpc_error:
                error = from_rpc_error(rpc_error)
                if isinstance(error, DeadlineExceeded):
                    raise DeadlineExceeded(f"{name} has not ended after {timeout_s} s") from None
                if not is_transient(error):
                    raise error from None
                backoff.wait(error)

    # Plans.

    def plan(
        self,
        job: str | Job,
        bits_per_weight: float,
        *,
        method: Method | None = None,
        rates: Sequence[float] = (),
        formats: Sequence[Format] = (),
        transform: Transform | None = None,
        keep: bool = False,
        progress: bool | None = None,
    ) -> Plan:
        """Spreads a budget of bits over the weights of a job so that their error is least.

        Measures candidates for every weight in a job of their own, which takes the weights that
        `job` has; nothing is uploaded again. `create_job_from_plan` then does what the plan says.

        Args:
            job: name, id or Job whose weights are complete.
            bits_per_weight: mean over all parameters, everything stored included.
            method: watersic: any rate for each layer; higgs; or, with `formats`, the method to
                use them with in place of the layers' own.
            rates: to measure with watersic or higgs; default: around the budget.
            formats: number formats to choose from, with the transforms of the layers' recipes.
            transform: with `formats`: in place of the layers' own.
            keep: keep the job that measured the candidates (`plan_job` can use it again).
            progress: a bar; default: as the client.

        Raises:
            InvalidArgument: options that do not fit each other or a layer.
            OutOfRange: a budget that the candidates do not reach; the message names the range.
            FailedPrecondition: weights that are not complete; no candidate that works.

        """
        source = self.get_job(job)
        layers = measuring_layers(
            source,
            method=method,
            rates=rates or default_rates(method, bits_per_weight),
            formats=formats,
            transform=transform,
        )
        assert source.recipe is not None
        measuring = self.create_job(
            source.recipe, layers, display_name=f"candidates for {source.name}"[:200]
        )
        try:
            self.wait(measuring, check=False, progress=progress)
            return self.plan_job(measuring, bits_per_weight)
        finally:
            if not keep:
                self.delete_job(measuring)

    def plan_job(self, job: str | Job, bits_per_weight: float) -> Plan:
        """The plan from a job that has measured candidates: layers that share a weight.

        Raises:
            FailedPrecondition: a candidate has not ended, or a weight has none that succeeded.
            OutOfRange: a budget that the candidates do not reach; the message names the range.

        """
        name = self._job_name(job)
        request = jobs_pb2.PlanJobRequest(name=name, bits_per_weight=bits_per_weight)
        return Plan.from_proto(self._transport.call(self._jobs.PlanJob, request), name)

    def create_job_from_plan(
        self, plan: Plan, *, job_id: str = "", display_name: str = "", request_id: str | None = None
    ) -> Job:
        """Creates the job that a plan describes, on the weights that are uploaded already."""
        names = dict.fromkeys(layer.layer.split("/layers/")[0] for layer in plan.layers)
        sources = [self.get_job(name) for name in names]
        layers = planned_layers(plan, sources)
        assert layers[0].recipe is not None
        return self.create_job(
            layers[0].recipe,
            layers,
            job_id=job_id,
            display_name=display_name or f"planned from {sources[0].name}"[:200],
            request_id=request_id,
        )

    # Weights.

    def upload_weights(
        self,
        job: str | Job,
        layer: str,
        array: NDArray[Any],
        *,
        dtype: DType | None = None,
        progress: bool | None = None,
    ) -> None:
        """Uploads the weight of a layer, R x C, and returns once the server holds it durably.

        Resumes an upload that was interrupted, by this process or an earlier one.

        Args:
            job: name, id or Job.
            layer: layer id.
            array: float64, float32, float16, or bfloat16 (ml_dtypes, or uint16 bit patterns).
            dtype: what to send, as the job declares it; default: the array's own.
            progress: a bar; default: as the client.

        """
        name = f"{self._job_name(job)}/layers/{layer}"
        upload(self._transport, name, array, dtype, self._shows(progress))

    # Calibration.

    def open_activation_stream(
        self,
        statistic: str,
        cols: int,
        *,
        dtype: DType = "bf16",
        kind: StatisticKind = "second-moment",
        paired_cols: int = 0,
        stream_id: str | None = None,
        block_size: int | None = None,
        sample_rows: int | None = None,
        sample_seed: int = 0,
        shared_memory: bool = False,
        cuda_ipc: bool = False,
        cuda_device: int = 0,
        cuda_ipc_bytes: int = CUDA_IPC_BYTES,
    ) -> ActivationStream:
        """A writer of a statistic, which its first stream creates. Use as a context manager.

        Args:
            statistic: id or name.
            cols: C, inputs of the layer.
            dtype: what goes over the wire; bf16 and f16 are accumulated exactly and fastest.
            kind: what is summed over the tokens.
            paired_cols: R of a residual moment, the rows of the layer's weight.
            stream_id: a name makes a run repeatable: chunks that an earlier run with the same
                data made durable are skipped. Default: a fresh one.
            block_size: keep only the diagonal blocks of that size: enough for rtn with the
                marginal solver and far smaller. None: the full C x C moment.
            sample_rows: tokens retained to measure activation quantization; default 512.
            sample_seed: of that sample.
            shared_memory: hand the bytes over in shared memory, to a server on this host that runs
                with --shared_memory and as this user (or root). The same result, faster.
            cuda_ipc: hand rows over that lie on a GPU (contiguous arrays of `dtype` of torch, CuPy
                or others), to a server on this host that runs with --cuda_ipc and uses the same
                GPU. They are not copied through this process, and have no checksum of its.
            cuda_device: which GPU, as CUDA counts them in this process.
            cuda_ipc_bytes: GPU memory that the stream takes: for what is not yet durable.

        Raises:
            InvalidArgument: an unknown kind, or shared memory or CUDA IPC with a server elsewhere.
            FailedPrecondition: CUDA IPC without an NVIDIA driver.
            ResourceExhausted: the GPU has not enough memory left for it.

        """
        header = make_header(
            self._statistic_name(statistic),
            stream_id or uuid.uuid4().hex,
            dtype,
            cols,
            kind=kind,
            paired_cols=paired_cols,
            block_size=block_size,
            sample_rows=sample_rows,
            sample_seed=sample_seed,
        )
        return ActivationStream(
            self._transport,
            header,
            dtype,
            shared_memory=shared_memory,
            cuda_ipc=cuda_ipc,
            cuda_device=cuda_device,
            cuda_ipc_bytes=cuda_ipc_bytes,
        )

    def stream_activations(
        self,
        statistic: str,
        activations: Any | Iterable[Any],
        *,
        token_weights: NDArray[Any] | Iterable[NDArray[Any]] | None = None,
        paired: Any | Iterable[Any] | None = None,
        kind: StatisticKind | None = None,
        dtype: DType | None = None,
        stream_id: str | None = None,
        block_size: int | None = None,
        sample_rows: int | None = None,
        sample_seed: int = 0,
        shared_memory: bool = False,
        cuda_ipc: bool = False,
        cuda_device: int = 0,
        cuda_ipc_bytes: int = CUDA_IPC_BYTES,
        progress: bool | None = None,
    ) -> int:
        """Adds activations to a statistic and returns the number of tokens, all durable.

        Args:
            statistic: id or name; created where it does not exist.
            activations: tokens x C, or any number of such arrays (NumPy's, or with cuda_ipc those
                of a GPU): x; of a cross or residual moment
                xhat, the inputs in the quantized model.
            token_weights: one a token and array, finite and >= 0: makes the statistic weighted.
            paired: of a cross moment x (tokens x C), of a residual moment the difference r - rhat
                (tokens x R); as many arrays as activations.
            kind: what is summed over the tokens; needed with `paired`. Default: weighted with
                `token_weights`, a second moment otherwise.
            dtype: what goes over the wire; default: the first array's own.
            stream_id: see `open_activation_stream`, as the rest.
            block_size: see there.
            sample_rows: see there.
            sample_seed: see there.
            shared_memory: see there.
            cuda_ipc: see there.
            cuda_device: see there.
            cuda_ipc_bytes: see there.
            progress: a bar; default: as the client.

        Raises:
            InvalidArgument: no activations, wrong shapes, NaN or Inf, or weights or paired rows
                that the kind does not take, or takes and are missing.
            FailedPrecondition: the statistic is sealed.

        """
        arrays = rows_of(activations)
        first = next(arrays, None)
        if first is None or len(first.shape) != 2 or first.shape[0] == 0:
            came = "none" if first is None else " x ".join(map(str, first.shape))
            raise InvalidArgument(f"activations: expected tokens x columns, came {came}")
        on_device = cuda_region.is_on_device(first)
        natural = cuda_region.natural_dtype if on_device else dtypes.natural_dtype
        weights = None if token_weights is None else rows_of(token_weights)
        pairs = None if paired is None else rows_of(paired)
        first_pair = None if pairs is None else next(pairs, None)
        if kind is None:
            if paired is not None:
                raise InvalidArgument(
                    "kind: expected cross-moment or residual-moment with paired rows, came none"
                )
            kind = "second-moment" if token_weights is None else "weighted"
        total = activations.shape[0] if first is activations else None
        tokens = 0
        with (
            ProgressBar(statistic, total, "token", self._shows(progress)) as bar,
            self.open_activation_stream(
                statistic,
                first.shape[1],
                dtype=dtype or natural(first),
                kind=kind,
                paired_cols=0 if first_pair is None else first_pair.shape[-1],
                stream_id=stream_id,
                block_size=block_size,
                sample_rows=sample_rows,
                sample_seed=sample_seed,
                shared_memory=shared_memory,
                cuda_ipc=cuda_ipc,
                cuda_device=cuda_device,
                cuda_ipc_bytes=cuda_ipc_bytes,
            ) as stream,
        ):
            array: Any = first
            pair = first_pair
            while array is not None:
                stream.send(
                    array,
                    token_weights=None if weights is None else next(weights, None),
                    paired=pair,
                )
                tokens += array.shape[0]
                bar.advance(array.shape[0])
                array = next(arrays, None)
                pair = None if pairs is None else next(pairs, None)
        return tokens

    def seal_statistic(self, statistic: str) -> Statistic:
        """Ends accumulation, so that layers that wait for the statistic can run.

        Raises:
            FailedPrecondition: no tokens, or a stream is still open.

        """
        request = calibration_pb2.SealStatisticRequest(name=self._statistic_name(statistic))
        return Statistic.from_proto(self._transport.call(self._calibration.SealStatistic, request))

    def get_statistic(self, statistic: str) -> Statistic:
        """The statistic as it is now; tokens counts what is durable."""
        request = calibration_pb2.GetStatisticRequest(name=self._statistic_name(statistic))
        return Statistic.from_proto(self._transport.call(self._calibration.GetStatistic, request))

    def list_statistics(self) -> Iterator[Statistic]:
        """Every statistic of the tenant."""
        request = calibration_pb2.ListStatisticsRequest(parent=self._parent())
        while True:
            response = self._transport.call(self._calibration.ListStatistics, request)
            yield from (Statistic.from_proto(statistic) for statistic in response.statistics)
            if not response.next_page_token:
                return
            request.page_token = response.next_page_token

    def merge_statistics(self, statistic: str, sources: Sequence[str]) -> Statistic:
        """Adds sealed statistics up into a new, sealed one named `statistic` (a short id)."""
        request = calibration_pb2.MergeStatisticsRequest(
            parent=self._parent(),
            statistic_id=statistic.rsplit("/", 1)[-1],
            sources=[self._statistic_name(source) for source in sources],
        )
        try:
            return Statistic.from_proto(
                self._transport.call(self._calibration.MergeStatistics, request)
            )
        except AlreadyExists as error:
            if not error.repeated:
                raise
            return self.get_statistic(statistic)

    def import_statistic(
        self, statistic: str, moment: Moment, *, progress: bool | None = None
    ) -> Statistic:
        """Stores a moment of any kind that was accumulated elsewhere, sealed."""
        name = self._statistic_name(statistic)
        return import_moment(self._transport, name, moment, self._shows(progress))

    def export_statistic(self, statistic: str, *, progress: bool | None = None) -> Moment:
        """Downloads a moment with its sample."""
        name = self._statistic_name(statistic)
        return export_moment(self._transport, name, self._shows(progress))

    def delete_statistic(self, statistic: str) -> None:
        """Deletes a statistic.

        Raises:
            FailedPrecondition: an unfinished job uses it.

        """
        request = calibration_pb2.DeleteStatisticRequest(name=self._statistic_name(statistic))
        self._transport.delete(self._calibration.DeleteStatistic, request)

    # Results.

    def fetch(self, job: str | Job, layer: str, *, progress: bool | None = None) -> QuantizedLayer:
        """Downloads the result of a finished layer, verified, with its report.

        Raises:
            NotFound: no such layer.
            FailedPrecondition: the layer has not succeeded (yet).

        """
        report = self.get_report(job, layer)
        data = self.fetch_file(job, layer, progress=progress)
        return quantized_layer.parse(data, report, layer)

    def fetch_file(self, job: str | Job, layer: str, *, progress: bool | None = None) -> bytes:
        """The result file (safetensors) of a finished layer as it is stored."""
        name = f"{self._job_name(job)}/artifacts/{layer}.safetensors"
        return read_artifact(self._transport, name, self._shows(progress))

    def get_report(self, job: str | Job, layer: str) -> dict[str, Any]:
        """The error report of a finished layer; None for a figure that could not be measured.

        Raises:
            FailedPrecondition: the layer has not succeeded (yet).

        """
        request = results_pb2.GetErrorReportRequest(layer=f"{self._job_name(job)}/layers/{layer}")
        return _report(self._transport.call(self._results.GetErrorReport, request))

    # One small tensor, inline.

    def quantize_tensor(
        self,
        weight: NDArray[Any],
        recipe: Recipe,
        *,
        activations: NDArray[Any] | None = None,
        second_moment: NDArray[Any] | None = None,
    ) -> QuantizedLayer:
        """Quantizes one small matrix in one call; the server stores nothing.

        Args:
            weight: R x C.
            recipe: what to do.
            activations: tokens x C; or
            second_moment: C x C, E[x x^T]; or neither, for transforms that need no data.

        Raises:
            InvalidArgument: shapes or values.
            ResourceExhausted: larger than the server takes inline (1 MiB by default).

        """
        request = quantize_pb2.QuantizeTensorRequest(
            recipe=recipe.to_proto(), weight=_inline(weight)
        )
        if activations is not None:
            request.activations.CopyFrom(_inline(activations))
        if second_moment is not None:
            request.second_moment.CopyFrom(_inline(second_moment))
        response = self._transport.call(self._quantize.QuantizeTensor, request)
        report = _report(response.report)
        tensors = {
            tensor.name: dtypes.decode(tensor.data, tensor.dtype, tuple(tensor.shape))
            for tensor in response.tensors
        }
        resolved = report.get("recipe")
        return QuantizedLayer(
            name=response.report.layer or "weight",
            recipe=recipe if resolved is None else Recipe.from_json(_as_text(resolved)),
            tensors=tensors,
            report=report,
            metadata={},
        )

    # Names.

    def _shows(self, progress: bool | None) -> bool | None:
        return self._progress if progress is None else progress

    def _parent(self) -> str:
        return f"tenants/{self.tenant}"

    def _job_name(self, job: str | Job) -> str:
        name = job.name if isinstance(job, Job) else job
        return name if "/" in name else f"{self._parent()}/jobs/{name}"

    def _statistic_name(self, statistic: str) -> str:
        if not statistic or "/" in statistic:
            return statistic
        return f"{self._parent()}/statistics/{statistic}"

    def _create_request(
        self, recipe: Recipe, layers: Sequence[LayerSpec], job_id: str, display_name: str
    ) -> jobs_pb2.CreateJobRequest:
        job = jobs_pb2.Job(recipe=recipe.to_proto(), display_name=display_name)
        for layer in layers:
            message = job.layers.add(
                layer_id=layer.layer_id,
                rows=layer.rows,
                cols=layer.cols,
                dtype=dtypes.to_proto(layer.dtype),
                fusion_group=layer.fusion_group,
                statistic=self._statistic_name(layer.statistic),
                second_moment_hat=self._statistic_name(layer.second_moment_hat),
                cross_moment=self._statistic_name(layer.cross_moment),
                residual_moment=self._statistic_name(layer.residual_moment),
                weight_of=layer.weight_of,
            )
            if layer.recipe is not None:
                message.recipe.CopyFrom(layer.recipe.to_proto())
        return jobs_pb2.CreateJobRequest(parent=self._parent(), job_id=job_id, job=job)


def _inline(array: NDArray[Any]) -> quantize_pb2.InlineTensor:
    dtype = dtypes.natural_dtype(array)
    return quantize_pb2.InlineTensor(
        dtype=dtypes.to_proto(dtype),
        shape=array.shape,
        data=dtypes.encode(array, dtype).tobytes(),
    )


def _report(message: results_pb2.ErrorReport) -> dict[str, Any]:
    """The whole report; the headline figures alone where the server sent no JSON."""
    if message.report_json:
        report: dict[str, Any] = json.loads(message.report_json)
        return report
    return {
        field.name: getattr(message, field.name)
        if not field.has_presence or message.HasField(field.name)
        else None
        for field in message.DESCRIPTOR.fields
        if field.name != "report_json"
    }


def _as_text(recipe: Any) -> str:
    return recipe if isinstance(recipe, str) else json.dumps(recipe)


def _layer_progress(layer: jobs_pb2.Layer) -> float:
    return 1.0 if layer.state == jobs_pb2.LAYER_SUCCEEDED else layer.progress


def _wait_note(response: jobs_pb2.WatchJobResponse) -> str:
    job = response.job
    note = jobs_pb2.JobState.Name(job.state).lower()
    if job.queue_position > 1:
        note += f", {job.queue_position - 1} ahead"
    if job.HasField("quota_wait"):
        note += f", waits for {job.quota_wait.quota}"
    return note


def _raise_unless_succeeded(job: Job) -> None:
    if job.state == "FAILED":
        raise JobFailed(
            job.name,
            {
                layer.layer_id: layer.error or Error("no reason given")
                for layer in job.layers
                if layer.state == "FAILED"
            },
        )
    if job.state == "CANCELLED":
        raise Cancelled(f"{job.name} was cancelled")
