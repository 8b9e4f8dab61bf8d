"""An issuer of tokens: key pairs, and a server on loopback that gives out their public halves as a JWK set."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

PRIVATE: dict[str, Any] = {
    "EdDSA": ed25519.Ed25519PrivateKey.generate(),
    "ES256": ec.generate_private_key(ec.SECP256R1()),
    "RS256": rsa.generate_private_key(65537, 2048),
}
PRIVATE["PS256"] = PRIVATE["RS256"]


def jwk(algorithm: str, kid: str | None = None, **more: Any) -> dict[str, Any]:
    """The public half of a key, as a JWK set has it."""
    public = PRIVATE[algorithm].public_key()
    made = jwt.get_algorithm_by_name(algorithm).to_jwk(public, as_dict=True)
    return {**made, **({} if kid is None else {"kid": kid}), **more}


def signed(algorithm: str, claims: dict[str, Any], **headers: Any) -> str:
    return jwt.encode(claims, PRIVATE[algorithm], algorithm, headers=headers)


def good_claims(tenant: str, **more: Any) -> dict[str, Any]:
    claims = {
        "iss": "https://issuer.test",
        "aud": "memory",
        "sub": "agent",
        "tenant": tenant,
        "scope": "memory:read",
        "exp": int(time.time()) + 600,
    }
    return {name: value for name, value in (claims | more).items() if value is not None}


@dataclass
class Issuer:
    """``body`` and ``status`` are what is answered; ``asked`` the paths that were asked for."""

    url: str = ""
    body: bytes = b""
    status: int = 200
    asked: list[str] = field(default_factory=list)

    def publish(self, *keys: dict[str, Any]) -> None:
        self.body = json.dumps({"keys": keys}).encode()


@contextlib.contextmanager
def running_issuer() -> Iterator[Issuer]:
    issuer = Issuer()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            issuer.asked.append(self.path)
            self.send_response(issuer.status)
            self.send_header("Location", "/elsewhere")
            self.send_header("Content-Length", str(len(issuer.body)))
            self.end_headers()
            with contextlib.suppress(OSError):
                self.wfile.write(issuer.body)

        def log_message(self, *_: Any) -> None:
            return None

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    issuer.url = f"http://127.0.0.1:{server.server_address[1]}/keys"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield issuer
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
