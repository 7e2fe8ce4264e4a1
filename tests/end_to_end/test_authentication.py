"""Who gets in: tokens, client certificates and JWTs, and other ones after a reload."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from quantd.v1 import jobs_pb2, server_pb2

from .pki import Authority, Certificate, SigningKey, write_jwks
from .refusal import refused, unharmed
from .server_process import Api, Server, eventually
from .wire import create_job, gaussian, layer, upload_chunk, upload_header, works

ISSUER, AUDIENCE = "https://login.example.org", "quantd"


def token_of(tenant: str) -> str:
    return f"{tenant}-0123456789abcdef"


def tenant_with_token(name: str, more: str = "", token: str | None = None) -> str:
    digest = hashlib.sha256((token or token_of(name)).encode()).hexdigest()
    return f'tenants {{ name: "{name}" token_sha256: "{digest}" {more} }}'


def who(api: Api, **call: Any) -> str:
    return str(api.server.GetServerInfo(server_pb2.GetServerInfoRequest(), **call).tenant)


# ---- client certificates ---------------------------------------------------------------------


class Tls:
    """A server with TLS for 127.0.0.1, and what its clients need."""

    def __init__(self, folder: Path):
        self.authority = Authority(folder, "authority")
        self.server = self.authority.issue("server", "DNS:localhost,IP:127.0.0.1")

    def config(self, *more: str, client_authority: bool = True) -> str:
        lines = [
            f'tls_certificate_file: "{self.server.certificate}"',
            f'tls_private_key_file: "{self.server.key}"',
        ]
        if client_authority:
            lines.append(f'tls_client_ca_file: "{self.authority.certificate}"')
        return "\n".join([*lines, *more])

    def credentials(self, certificate: Certificate | None = None) -> grpc.ChannelCredentials:
        root = self.authority.certificate.read_bytes()
        key, chain = certificate.pem() if certificate is not None else (None, None)
        return grpc.ssl_channel_credentials(root, key, chain)


@pytest.fixture
def tls(tmp_path: Path) -> Tls:
    return Tls(tmp_path / "pki")


CERTIFICATES = """certificates { uri: "spiffe://example.org/alpha" }
                  certificates { dns: "Alpha.Example.Org" }"""


def test_certificates(start_server: Callable[..., Server], tls: Tls) -> None:
    """A name in the certificate is a tenant; a token beside it decides."""
    config = tls.config(tenant_with_token("alpha", CERTIFICATES), tenant_with_token("beta"))
    server = start_server(config=config)
    names = {
        "uri": "URI:spiffe://example.org/alpha",
        "dns": "DNS:alpha.example.org",
        "second": "DNS:other.example.org,URI:spiffe://example.org/alpha",
    }
    for name, alternative in names.items():
        own = tls.credentials(tls.authority.issue(name, alternative))
        api = server.connect("alpha", tls=own)
        assert who(api) == "alpha"
        works(api)
        assert who(server.connect("beta", token_of("beta"), own)) == "beta"
        with refused("UNAUTHENTICATED"):
            who(server.connect("alpha", "wrong", own))
    strangers = {
        "longer": "URI:spiffe://example.org/alpha/x",
        "wrong_kind": "DNS:spiffe.example.org",
        "email": "email:alpha@example.org",
        "wildcard": "DNS:*.example.org",
    }
    for name, alternative in strangers.items():
        with refused("UNAUTHENTICATED"):
            who(
                server.connect("alpha", tls=tls.credentials(tls.authority.issue(name, alternative)))
            )
    with refused("UNAUTHENTICATED"):
        who(server.connect("alpha", tls=tls.credentials()))
    assert who(server.connect("beta", token_of("beta"), tls.credentials())) == "beta"


def no_connection(server: Server, credentials: grpc.ChannelCredentials, token: str | None) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        who(server.connect("alpha", token, credentials))
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


def test_certificate_of_another_authority(
    start_server: Callable[..., Server], tls: Tls, tmp_path: Path
) -> None:
    """It does not even get to a call, whatever names it has."""
    server = start_server(config=tls.config(tenant_with_token("alpha", CERTIFICATES)))
    forged = Authority(tmp_path / "forged", "authority").issue(
        "forged", "URI:spiffe://example.org/alpha"
    )
    no_connection(server, tls.credentials(forged), None)
    no_connection(server, tls.credentials(forged), token_of("alpha"))


def test_certificates_can_be_required(start_server: Callable[..., Server], tls: Tls) -> None:
    required = "tls_require_client_certificate: true"
    server = start_server(config=tls.config(required, tenant_with_token("alpha", CERTIFICATES)))
    no_connection(server, tls.credentials(), token_of("alpha"))
    own = tls.authority.issue("own", "URI:spiffe://example.org/alpha")
    assert who(server.connect("alpha", tls=tls.credentials(own))) == "alpha"


def test_quantctl_with_a_certificate(
    start_server: Callable[..., Server], tls: Tls, quantctl: Callable[..., Any]
) -> None:
    server = start_server(config=tls.config(tenant_with_token("alpha", CERTIFICATES)))
    own = tls.authority.issue("own", "URI:spiffe://example.org/alpha")
    flags = ["--server", server.address, "--tls_ca", tls.authority.certificate]
    flags += ["--tls_cert", own.certificate, "--tls_key", own.key]
    assert "alpha" in quantctl(*flags, "info", check=True).stdout


# ---- JWT -------------------------------------------------------------------------------------


class Issuer:
    def __init__(self, folder: Path):
        self.key = SigningKey(folder, "key-1")
        self.other = SigningKey(folder, "key-2")
        self.stranger = SigningKey(folder / "stranger", "key-1")
        self.keys_file = write_jwks(folder / "jwks.json", [self.key.jwk(), self.other.jwk()])

    def config(self, algorithm: str = "RS256") -> str:
        return (
            f'jwt {{ issuer: "{ISSUER}" audience: "{AUDIENCE}" algorithm: "{algorithm}"'
            f' keys_file: "{self.keys_file}" clock_skew_seconds: 1 }}'
        )

    @staticmethod
    def claims(**changed: Any) -> dict[str, Any]:
        now = int(time.time())
        claims: dict[str, Any] = {
            "iss": ISSUER,
            "aud": AUDIENCE,
            "sub": "trainer-7",
            "exp": now + 600,
            "nbf": now - 10,
            "tenant": "alpha",
        }
        claims.update(changed)
        return {name: value for name, value in claims.items() if value is not None}


@pytest.fixture(scope="module")
def issuer(tmp_path_factory: pytest.TempPathFactory) -> Issuer:
    return Issuer(tmp_path_factory.mktemp("issuer"))


@pytest.fixture(scope="module")
def jwt_server(tmp_path_factory: pytest.TempPathFactory, issuer: Issuer) -> Iterator[Server]:
    config = "\n".join([tenant_with_token("alpha"), 'tenants { name: "beta" }', issuer.config()])
    started = Server(tmp_path_factory.mktemp("jwt") / "data", config=config).start()
    yield started
    started.stop()


@pytest.mark.parametrize(
    ("claims", "tenant"),
    [
        ({}, "alpha"),
        ({"tenant": "beta"}, "beta"),
        ({"aud": ["other", AUDIENCE]}, "alpha"),
        ({"nbf": None, "sub": None}, "alpha"),
        ({"roles": ["read", "something else"]}, "alpha"),
        ({"roles": "read submit"}, "alpha"),
    ],
)
def test_jwt(jwt_server: Server, issuer: Issuer, claims: dict[str, Any], tenant: str) -> None:
    for key in (issuer.key, issuer.other):
        token = key.sign(issuer.claims(**claims), "RS256")
        assert who(jwt_server.connect(tenant, token)) == tenant


@pytest.mark.parametrize(
    "claims",
    [
        {"exp": int(time.time()) - 60},
        {"exp": None},
        {"exp": "tomorrow"},
        {"exp": float("inf")},
        {"nbf": int(time.time()) + 3600},
        {"nbf": "now"},
        {"iss": "https://login.example.com"},
        {"iss": None},
        {"aud": "quantd2"},
        {"aud": ["other"]},
        {"aud": [[AUDIENCE]]},
        {"aud": None},
        {"tenant": "gamma"},
        {"tenant": None},
        {"tenant": ["alpha"]},
    ],
    ids=str,
)
def test_claims_that_are_refused(
    jwt_server: Server, issuer: Issuer, claims: dict[str, Any]
) -> None:
    token = issuer.key.sign(issuer.claims(**claims), "RS256")
    with refused("UNAUTHENTICATED") as refusal:
        who(jwt_server.connect("alpha", token))
    assert "JWT" in refusal.message
    assert token[-16:] not in refusal.message


def test_role_claim(jwt_server: Server, issuer: Issuer) -> None:
    reader = jwt_server.connect("alpha", issuer.key.sign(issuer.claims(roles=["read"]), "RS256"))
    reader.jobs.ListJobs(jobs_pb2.ListJobsRequest(parent="tenants/alpha"))
    with refused("PERMISSION_DENIED", "ROLE_REQUIRED", says=["submit", "read"]):
        create_job(reader, [layer("w", 4, 32)])
    nobody = jwt_server.connect("alpha", issuer.key.sign(issuer.claims(roles=[]), "RS256"))
    with refused("PERMISSION_DENIED", "ROLE_REQUIRED", says=["none"]):
        who(nobody)


def test_forged_tokens(jwt_server: Server, issuer: Issuer) -> None:
    claims = issuer.claims()
    genuine = issuer.key.sign(claims, "RS256")
    assert who(jwt_server.connect("alpha", genuine)) == "alpha"
    head, payload, signature = genuine.split(".")
    other_payload = issuer.key.sign(issuer.claims(tenant="beta"), "RS256").split(".")[1]
    forged = {
        "none": issuer.key.sign(claims, "none"),
        "none with a signature": issuer.key.sign(claims, "none") + signature,
        "None": issuer.key.sign(claims, "RS256", alg="None"),
        "the public key as an HMAC's secret": issuer.key.sign(claims, "HS256"),
        "another algorithm of the same key": issuer.key.sign(claims, "RS512"),
        "another padding of the same key": issuer.key.sign(claims, "PS256"),
        "a stranger's key with a known id": issuer.stranger.sign(claims, "RS256"),
        "a stranger's key without an id": issuer.stranger.sign(claims, "RS256", kid=None),
        "a known key under another's id": issuer.key.sign(claims, "RS256", kid="key-2"),
        "an unknown id": issuer.key.sign(claims, "RS256", kid="key-3"),
        "an extension": issuer.key.sign(claims, "RS256", crit=["exp"]),
        "a key of its own": issuer.stranger.sign(claims, "RS256", jwk=issuer.stranger.jwk()),
        "other claims": f"{head}.{other_payload}.{signature}",
        "no signature": f"{head}.{payload}.",
        "a cut signature": genuine[:-8],
        "nothing": "..",
        "no base64": "!!.!!.!!",
        "padding inside": "e=yJhbGciOn0.e30.",
        "padding at the end": f"{head}=.{payload}=.{signature}=",
        "base64 of no length": f"{head}.{payload}.{'A' * 5}",
        "other base64": f"{head}.{payload}.{signature[:-4]}+/+/",
        "too long": f"{head}.{payload}.{'A' * 6500}",
        "four parts": f"{genuine}.{signature}",
    }
    api = jwt_server.connect("alpha", genuine)
    with unharmed(jwt_server, api):
        for what, token in forged.items():
            with refused("UNAUTHENTICATED") as refusal:
                who(jwt_server.connect("alpha", token))
            assert not signature or signature[:16] not in refusal.message, what


@pytest.mark.parametrize(("algorithm", "kind"), [("ES256", "EC"), ("PS256", "RSA")])
def test_other_algorithms(
    start_server: Callable[..., Server], tmp_path: Path, algorithm: str, kind: str
) -> None:
    key = SigningKey(tmp_path, "one", kind)
    stranger = SigningKey(tmp_path / "stranger", "one", kind)
    keys_file = write_jwks(tmp_path / "jwks.json", [key.jwk()])
    config = (
        f'tenants {{ name: "alpha" }} jwt {{ issuer: "{ISSUER}" audience: "{AUDIENCE}"'
        f' algorithm: "{algorithm}" keys_file: "{keys_file}" }}'
    )
    server = start_server(config=config)
    assert who(server.connect("alpha", key.sign(Issuer.claims(), algorithm))) == "alpha"
    with refused("UNAUTHENTICATED"):
        who(server.connect("alpha", stranger.sign(Issuer.claims(), algorithm)))


@pytest.mark.parametrize(
    "what", ["private", "symmetric", "short", "curve", "none", "no base64", "no JSON"]
)
def test_keys_that_are_refused(tmp_path: Path, what: str) -> None:
    """A server that cannot verify safely does not start."""
    key = SigningKey(tmp_path, "one").jwk()
    keys = {
        "private": [{**key, "d": "AQAB"}],
        "symmetric": [{"kty": "oct", "k": "c2VjcmV0"}],
        "short": [SigningKey(tmp_path, "short", bits=1024).jwk()],
        "curve": [SigningKey(tmp_path, "curve", "EC").jwk()],
        "none": [{**key, "use": "enc"}],
        "no base64": [{**key, "n": "A=" + key["n"]}],
        "no JSON": [],
    }[what]
    keys_file = write_jwks(tmp_path / "jwks.json", keys)
    if what == "no JSON":
        keys_file.write_text("-----BEGIN PUBLIC KEY-----")
    config = (
        f'tenants {{ name: "alpha" }} jwt {{ issuer: "i" audience: "a" keys_file: "{keys_file}" }}'
    )
    server = Server(tmp_path / "data", config=config)
    with pytest.raises(AssertionError, match="before it listened"):
        server.start()
    assert "jwt.keys_file" in "".join(server.stderr)
    assert "c2VjcmV0" not in "".join(server.stderr)


# ---- reload ----------------------------------------------------------------------------------


def test_tokens_are_reloaded(start_server: Callable[..., Server]) -> None:
    server = start_server(config=tenant_with_token("alpha"))
    alpha = server.connect("alpha", token_of("alpha"))
    assert who(alpha) == "alpha"
    job = create_job(alpha, [layer("w", 8, 32)])
    data = gaussian(8, 32, 1).astype(np.float32).tobytes()

    # A stream that is open goes on while its token is replaced.
    def slowly() -> Iterator[Any]:
        yield upload_header(job.layers[0].name, 8, 32, job.layers[0].dtype)
        yield upload_chunk(0, data[:512])
        is_open = 'quantd_open_streams{kind="weights"} 1'
        eventually(lambda: is_open in server.metrics(), "the server has let the stream in")
        entry = server.reload(
            "\n".join([tenant_with_token("alpha", token="new"), tenant_with_token("beta")])
        )
        assert entry["event"] == "reloaded" and entry["tenants"] == 2
        assert entry["restart_needed"] is False
        yield upload_chunk(512, data[512:])

    status = alpha.weights.UploadWeights(slowly()).status
    assert status.committed_size == len(data)
    with refused("UNAUTHENTICATED"):
        who(alpha)
    assert who(server.connect("alpha", "new")) == "alpha"
    assert who(server.connect("beta", token_of("beta"))) == "beta"


def test_a_bad_configuration_changes_nothing(
    start_server: Callable[..., Server], tmp_path: Path
) -> None:
    good = tenant_with_token("alpha")
    server = start_server(config=good)
    mistakes = {
        "{{{": ".textproto:1:",
        'tenants { name: "alpha" token_sha256: "secret-token" }': "token_sha256",
        f'{good} jwt {{ issuer: "i" audience: "a" keys_file: "{tmp_path}/none" }}': "keys_file",
        f'{good} tls_certificate_file: "a" tls_private_key_file: "b"': "restart",
        f'{good} listen: "0.0.0.0:1"': "",  # the flag's address stands
    }
    for config, says in mistakes.items():
        entry = server.reload(config)
        if says:
            assert entry["event"] == "reload_refused"
            assert says in entry["error"]
            assert "secret-token" not in entry["error"]
        assert who(server.connect("alpha", token_of("alpha"))) == "alpha"
    assert server.reload(f"{good} log_level: 'debug'")["restart_needed"] is True


def test_keys_are_reloaded(start_server: Callable[..., Server], tmp_path: Path) -> None:
    issuer = Issuer(tmp_path / "issuer")
    config = f'tenants {{ name: "alpha" }} {issuer.config()}'
    server = start_server(config=config)
    token = issuer.key.sign(issuer.claims(), "RS256")
    assert who(server.connect("alpha", token)) == "alpha"
    write_jwks(issuer.keys_file, [issuer.other.jwk()])
    assert server.reload(config)["event"] == "reloaded"
    with refused("UNAUTHENTICATED"):
        who(server.connect("alpha", token))
    assert who(server.connect("alpha", issuer.other.sign(issuer.claims(), "RS256"))) == "alpha"


def test_certificates_are_reloaded(
    start_server: Callable[..., Server], tls: Tls, tmp_path: Path
) -> None:
    """The server's own, and the authority of the clients'; a key that does not fit is refused."""
    config = tls.config(tenant_with_token("alpha", CERTIFICATES))
    server = start_server(config=config)
    old = tls.credentials(tls.authority.issue("old", "URI:spiffe://example.org/alpha"))
    connected = server.connect("alpha", tls=old)
    assert who(connected) == "alpha"

    key = tls.server.key.read_bytes()
    tls.server.key.write_bytes(Authority(tmp_path / "x", "x").issue("y", "DNS:y").key.read_bytes())
    entry = server.reload(config)
    assert entry["event"] == "reload_refused" and "private key" in entry["error"]
    assert who(server.connect("alpha", tls=old)) == "alpha"
    tls.server.key.write_bytes(key)

    renewed = Tls(tmp_path / "renewed")
    entry = server.reload(renewed.config(tenant_with_token("alpha", CERTIFICATES)))
    assert entry["event"] == "reloaded"
    assert who(connected) == "alpha"  # its connection goes on
    no_connection(server, old, None)
    new = renewed.authority.issue("new", "DNS:alpha.example.org")
    assert who(server.connect("alpha", tls=renewed.credentials(new))) == "alpha"


def test_many_hangups(start_server: Callable[..., Server]) -> None:
    """Signals that come while one is served are not lost, and harm nothing."""
    server = start_server(config=tenant_with_token("alpha"))
    assert server.process is not None
    for _ in range(50):
        server.process.send_signal(1)
    eventually(lambda: any(e.get("event") == "reloaded" for e in server.log), "a reload")
    assert server.reload(tenant_with_token("beta"))["tenants"] == 1
    eventually(lambda: _is_in(server, "beta"), "the last configuration is in force")


def _is_in(server: Server, tenant: str) -> bool:
    try:
        return who(server.connect(tenant, token_of(tenant))) == tenant
    except grpc.RpcError:
        return False
