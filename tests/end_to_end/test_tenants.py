"""Two tenants with tokens: who a caller is, and that nobody sees another's things."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator

import grpc
import pytest
from quantd.v1 import (
    calibration_pb2,
    jobs_pb2,
    recipe_pb2,
    results_pb2,
    server_pb2,
    weights_pb2,
)

from .every_method import METHODS
from .refusal import refused, unharmed
from .server_process import Api, Server
from .test_resource_names import CREATING_CALLS, EVERY_NAMED_CALL, PARENT_CALLS, PREFIXES
from .wire import (
    ActivationStream,
    activation_header,
    activations_like,
    create_job,
    gaussian,
    layer,
    list_artifacts,
    read_artifact,
    sealed_statistic,
    upload,
    wait_for_job,
    works,
)

TOKENS = {"alpha": "alpha's token, with spaces", "beta": "beta-0123456789abcdef"}
COLS = 64


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    config = "\n".join(
        f'tenants {{ name: "{name}" token_sha256: "{hashlib.sha256(token.encode()).hexdigest()}"'
        f" weight: {weight} }}"
        for (name, token), weight in zip(TOKENS.items(), (3, 1), strict=True)
    )
    data_dir = tmp_path_factory.mktemp("tenants") / "data"
    started = Server(data_dir, config=config).start()
    yield started
    started.stop()


@pytest.fixture(scope="module")
def alpha(server: Server) -> Api:
    return server.connect("alpha", TOKENS["alpha"])


@pytest.fixture(scope="module")
def beta(server: Server) -> Api:
    return server.connect("beta", TOKENS["beta"])


@pytest.fixture(scope="module")
def alphas(alpha: Api) -> dict[str, str]:
    """One of everything that belongs to alpha."""
    statistic = sealed_statistic(alpha, "secret-statistic", activations_like(64, COLS, 1)).name
    job = create_job(alpha, [layer("w", 8, COLS, statistic=statistic)], job_id="secret-job")
    upload(alpha, job.layers[0].name, gaussian(8, COLS, 1))
    assert wait_for_job(alpha, job.name).state == jobs_pb2.SUCCEEDED
    return {
        "statistic": statistic,
        "job": job.name,
        "layer": job.layers[0].name,
        "artifact": f"{job.name}/artifacts/w.safetensors",
    }


@pytest.mark.parametrize(
    "token",
    [None, "", "wrong", TOKENS["alpha"] + "x", TOKENS["alpha"][:-1], TOKENS["alpha"].upper()],
    ids=["none", "empty", "wrong", "longer", "shorter", "upper case"],
)
def test_unauthenticated(server: Server, alpha: Api, alphas: dict[str, str], token: str) -> None:
    api = server.connect("alpha", token)
    with unharmed(server, alpha):
        for call in (
            lambda: api.server.GetServerInfo(server_pb2.GetServerInfoRequest()),
            lambda: api.jobs.GetJob(jobs_pb2.GetJobRequest(name=alphas["job"])),
            lambda: create_job(api, [layer("w", 8, COLS)]),
            lambda: list(
                api.results.ReadArtifact(results_pb2.ReadArtifactRequest(name=alphas["artifact"]))
            ),
            lambda: ActivationStream(api, activation_header("tenants/alpha/statistics/x", COLS)),
            lambda: api.weights.UploadWeights(
                iter([weights_pb2.UploadWeightsRequest(header={"layer": alphas["layer"]})])
            ),
            lambda: works(api),
        ):
            with refused("UNAUTHENTICATED") as refusal:
                call()
            assert not token or token not in refusal.message
    api.close()


@pytest.mark.parametrize(
    "value",
    ["Basic YTpi", TOKENS["alpha"], "Bearer", "Bearer  ", f"Token {TOKENS['alpha']}"],
)
def test_malformed_authorization(server: Server, value: str) -> None:
    api = server.connect("alpha")
    with refused("UNAUTHENTICATED"):
        api.server.GetServerInfo(
            server_pb2.GetServerInfoRequest(), metadata=[("authorization", value)]
        )
    api.close()


def test_scheme_in_any_case(server: Server) -> None:
    api = server.connect("alpha")
    info = api.server.GetServerInfo(
        server_pb2.GetServerInfoRequest(),
        metadata=[("authorization", f"bearer {TOKENS['alpha']}")],
    )
    assert info.tenant == "alpha"
    api.close()


def test_server_tells_the_tenant(alpha: Api, beta: Api) -> None:
    for api in (alpha, beta):
        info = api.server.GetServerInfo(server_pb2.GetServerInfoRequest())
        assert info.tenant == api.tenant


@pytest.mark.parametrize(
    ("kind", "name", "call"), EVERY_NAMED_CALL, ids=[name for _, name, _ in EVERY_NAMED_CALL]
)
def test_another_tenants_things_look_like_absent_ones(
    server: Server, alpha: Api, beta: Api, alphas: dict[str, str], kind: str, name: str, call
) -> None:
    """What exists and what does not: the same answer, so existence does not leak."""
    absent = PREFIXES[kind].format(tenant="alpha") + "no-such-thing"
    with unharmed(server, alpha), unharmed(server, beta):
        with refused("PERMISSION_DENIED") as existing:
            call(beta, alphas[kind])
        with refused("PERMISSION_DENIED") as missing:
            call(beta, absent)
    assert existing.reason == missing.reason
    assert existing.fields.keys() == missing.fields.keys()
    assert existing.message.replace(alphas[kind], "") == missing.message.replace(absent, "")


@pytest.mark.parametrize("call", PARENT_CALLS.values(), ids=PARENT_CALLS)
def test_another_tenants_parent(server: Server, alpha: Api, beta: Api, call) -> None:
    with unharmed(server, alpha), refused("PERMISSION_DENIED"):
        call(beta, "tenants/alpha")


def test_lists_show_ones_own(alpha: Api, beta: Api, alphas: dict[str, str]) -> None:
    own = create_job(beta, [layer("w", 8, COLS)])
    sealed_statistic(beta, "betas", activations_like(8, COLS, 2))
    for api in (alpha, beta):
        jobs = api.jobs.ListJobs(jobs_pb2.ListJobsRequest(parent=api.parent)).jobs
        statistics = api.calibration.ListStatistics(
            calibration_pb2.ListStatisticsRequest(parent=api.parent)
        ).statistics
        assert jobs and statistics
        for resource in [*jobs, *statistics]:
            assert resource.name.startswith(f"{api.parent}/")
    beta.jobs.DeleteJob(jobs_pb2.DeleteJobRequest(name=own.name))


def test_same_ids_do_not_meet(server: Server, alpha: Api, beta: Api) -> None:
    """Both tenants use the same ids everywhere; results and statistics stay apart."""
    data: dict[str, tuple[str, bytes]] = {}
    for seed, api in enumerate((alpha, beta)):
        statistic = sealed_statistic(api, "same", activations_like(64, COLS, seed))
        job = create_job(
            api,
            [layer("w", 8, COLS, statistic=statistic.name)],
            recipe_pb2.Recipe(format=recipe_pb2.INT4, transform=recipe_pb2.WUSH),
            job_id="same",
            request_id="same",
        )
        assert job.name == f"{api.parent}/jobs/same"
        upload(api, job.layers[0].name, gaussian(8, COLS, seed))
        wait_for_job(api, job.name)
        artifact = f"{job.name}/artifacts/w.safetensors"
        data[api.tenant] = (statistic.digest, read_artifact(api, artifact))
    assert data["alpha"][0] != data["beta"][0]
    assert data["alpha"][1] != data["beta"][1]
    alpha.jobs.DeleteJob(jobs_pb2.DeleteJobRequest(name="tenants/alpha/jobs/same"))
    assert list_artifacts(beta, "tenants/beta/jobs/same")


def test_page_token_of_another_tenant(alpha: Api, beta: Api) -> None:
    """It brings nothing of alpha's, whatever else becomes of it."""
    for n in range(3):
        create_job(alpha, [layer("w", 8, COLS)], job_id=f"page-{n}")
    token = alpha.jobs.ListJobs(
        jobs_pb2.ListJobsRequest(parent="tenants/alpha", page_size=1)
    ).next_page_token
    assert token
    try:
        page = beta.jobs.ListJobs(jobs_pb2.ListJobsRequest(parent="tenants/beta", page_token=token))
        assert all(job.name.startswith("tenants/beta/") for job in page.jobs)
    except grpc.RpcError as error:
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_health_needs_no_token(server: Server) -> None:
    """A load balancer has none."""
    api = server.connect()
    assert api.health() == "SERVING"
    api.close()


def test_tokens_are_nowhere_to_be_found(server: Server) -> None:
    """Neither in the log nor on the disk."""
    log = "".join(server.stderr)
    for token in TOKENS.values():
        assert token not in log
        for path in server.data_dir.rglob("*"):
            if path.is_file():
                assert token.encode() not in path.read_bytes()


def test_both_work_at_once(alpha: Api, beta: Api) -> None:
    failures: list[BaseException] = []

    def run(api: Api) -> None:
        try:
            for n in range(3):
                job = create_job(api, [layer("w", 64, COLS)], job_id=f"both-{n}")
                upload(api, job.layers[0].name, gaussian(64, COLS, n))
                assert wait_for_job(api, job.name).state == jobs_pb2.SUCCEEDED
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(api,)) for api in (alpha, beta)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_every_method_that_names_something_is_covered() -> None:
    """A new one does not come without its line in the tables."""
    assert set(CREATING_CALLS) <= {name for _, name, _ in EVERY_NAMED_CALL}
    covered = {name for _, name, _ in EVERY_NAMED_CALL} | set(PARENT_CALLS)
    nameless = {"Quantize/QuantizeTensor", "Server/GetServerInfo", "Server/ListTenants"}
    assert {name.split("/")[1] for name in set(METHODS) - nameless} == covered


def test_a_weight_of_another_tenant(
    server: Server, alpha: Api, beta: Api, alphas: dict[str, str]
) -> None:
    """`weight_of`: the same answer for a layer that is there and for one that is not."""
    absent = alphas["layer"] + "-no"
    with unharmed(server, beta):
        with refused("PERMISSION_DENIED") as existing:
            create_job(beta, [layer("w", 8, COLS, weight_of=alphas["layer"])])
        with refused("PERMISSION_DENIED") as missing:
            create_job(beta, [layer("w", 8, COLS, weight_of=absent)])
    assert existing.reason == missing.reason == "FOREIGN_TENANT"
    assert existing.message.replace(alphas["layer"], "") == missing.message.replace(absent, "")
    again = create_job(alpha, [layer("w", 8, COLS, weight_of=alphas["layer"])])
    alpha.jobs.DeleteJob(jobs_pb2.DeleteJobRequest(name=again.name))


def test_page_tokens_of_every_list(alpha: Api, beta: Api, alphas: dict[str, str]) -> None:
    """One tenant's token is no token for another, nor for another list."""
    for n in range(2):
        sealed_statistic(alpha, f"page-{n}", activations_like(8, COLS, n))
    token = alpha.calibration.ListStatistics(
        calibration_pb2.ListStatisticsRequest(parent="tenants/alpha", page_size=1)
    ).next_page_token
    assert token
    with refused("INVALID_ARGUMENT", field="page_token"):
        beta.calibration.ListStatistics(
            calibration_pb2.ListStatisticsRequest(parent="tenants/beta", page_token=token)
        )
    with refused("INVALID_ARGUMENT", field="page_token"):
        alpha.jobs.ListJobs(jobs_pb2.ListJobsRequest(parent="tenants/alpha", page_token=token))
