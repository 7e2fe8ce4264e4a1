"""Keys, certificates and signed tokens, made by the openssl program."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any


def _openssl(*arguments: object, stdin: bytes | None = None) -> bytes:
    done = subprocess.run(["openssl", *map(str, arguments)], input=stdin, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


@dataclass(frozen=True)
class Certificate:
    certificate: Path
    key: Path

    def pem(self) -> tuple[bytes, bytes]:
        """Key and chain, as grpc.ssl_channel_credentials takes them."""
        return self.key.read_bytes(), self.certificate.read_bytes()


class Authority:
    """A certificate authority that lives in a folder."""

    def __init__(self, folder: Path, name: str):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.name = folder, name
        self.certificate, self._key = folder / f"{name}.pem", folder / f"{name}.key"
        arguments = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
        _openssl(
            *["req", "-x509", *arguments, "-days", 2, "-subj", f"/CN={name}"],
            *["-keyout", self._key, "-out", self.certificate],
        )

    def issue(self, name: str, names: str) -> Certificate:
        """`names`: subject alternative names as openssl writes them, "DNS:a.example"."""
        made = Certificate(self.folder / f"{name}.pem", self.folder / f"{name}.key")
        request = _openssl(
            *["req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"],
            *["-subj", f"/CN={name}", "-keyout", made.key],
        )
        extensions = self.folder / f"{name}.extensions"
        extensions.write_text(f"subjectAltName={names}\n")
        _openssl(
            *["x509", "-req", "-CA", self.certificate, "-CAkey", self._key, "-CAcreateserial"],
            *["-days", 1, "-extfile", extensions, "-out", made.certificate],
            stdin=request,
        )
        return made


def _base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


class SigningKey:
    """An issuer's key: "RSA" with 2048 bits, or "EC" on P-256."""

    def __init__(self, folder: Path, key_id: str, kind: str = "RSA", bits: int = 2048):
        folder.mkdir(parents=True, exist_ok=True)
        self.key_id, self.kind = key_id, kind
        self._file = folder / f"{key_id}.key"
        options = f"rsa_keygen_bits:{bits}" if kind == "RSA" else "ec_paramgen_curve:P-256"
        _openssl("genpkey", "-algorithm", kind, "-pkeyopt", options, "-out", self._file)

    def public_pem(self) -> bytes:
        return _openssl("pkey", "-in", self._file, "-pubout")

    def jwk(self) -> dict[str, str]:
        head = {"kid": self.key_id, "use": "sig", "kty": self.kind}
        if self.kind == "RSA":
            text = _openssl("rsa", "-in", self._file, "-noout", "-modulus").decode()
            modulus = bytes.fromhex(text.strip().removeprefix("Modulus="))
            return {**head, "n": _base64url(modulus), "e": "AQAB"}
        der = _openssl("pkey", "-in", self._file, "-pubout", "-outform", "DER")
        x, y = der[-64:-32], der[-32:]  # the point ends the structure
        return {**head, "crv": "P-256", "x": _base64url(x), "y": _base64url(y)}

    def sign(self, claims: dict[str, Any], alg: str, /, **header: Any) -> str:
        head = {"typ": "JWT", "kid": self.key_id, "alg": alg, **header}
        body = f"{_base64url(json.dumps(head).encode())}.{_base64url(json.dumps(claims).encode())}"
        return f"{body}.{_base64url(self._signature(body.encode(), alg))}"

    def _signature(self, body: bytes, alg: str) -> bytes:
        if alg == "none":
            return b""
        if alg.startswith("HS"):  # the confusion: the public key as the secret
            return hmac.digest(self.public_pem(), body, hashlib.sha256)
        padding = ["-sigopt", "rsa_padding_mode:pss", "-sigopt", "rsa_pss_saltlen:digest"]
        options = padding if alg.startswith("PS") else []
        made = _openssl("dgst", f"-sha{alg[2:]}", "-sign", self._file, *options, stdin=body)
        return _raw_ecdsa(made) if alg.startswith("ES") else made


def _raw_ecdsa(der: bytes) -> bytes:
    """SEQUENCE { INTEGER r, INTEGER s } as r || s, 32 bytes each."""
    parts, rest = [], der[2:]
    for _ in range(2):
        length = rest[1]
        parts.append(int.from_bytes(rest[2 : 2 + length], "big").to_bytes(32, "big"))
        rest = rest[2 + length :]
    return b"".join(parts)


def write_jwks(path: Path, keys: list[dict[str, str]]) -> Path:
    path.write_text(json.dumps({"keys": keys}))
    return path
