"""Bearer tokens of an issuer elsewhere: what is taken, what is refused, and what is revoked."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx2
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from tests.api.door import check_error, eventually
from tests.support.jwks_server import PRIVATE, Issuer, good_claims, jwk, running_issuer, signed
from tests.support.product import Product, running_product

NODES = "/v1/memory/nodes"
KIDS = {"EdDSA": "ed", "ES256": "ec", "RS256": "rsa", "PS256": "rsa"}


@dataclass
class Scene:
    product: Product
    issuer: Issuer
    http: httpx2.Client

    def ask(self, token: str, **headers: str) -> httpx2.Response:
        return self.http.get(NODES, headers={"Authorization": f"Bearer {token}"} | headers)


@pytest.fixture(scope="module")
def scene() -> Iterator[Scene]:
    with running_issuer() as issuer:
        issuer.publish(*(jwk(name, KIDS[name]) for name in ("EdDSA", "ES256", "RS256")))
        settings = {
            "JWT_JWKS_URL": issuer.url,
            "JWT_ISSUER": "https://issuer.test",
            "JWT_AUDIENCE": "memory",
            "JWT_CLOCK_SKEW": "30",
            "EMBEDDINGS_PROVIDER": "none",
        }
        with running_product(environment=settings) as product, httpx2.Client(base_url=product.url, timeout=30) as http:
            yield Scene(product, issuer, http)


def encode(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def raw(algorithm: str, payload: str, header: str | None = None) -> str:
    """A token whose signature is right, of a payload and a header that no library would write."""
    head = header or json.dumps({"alg": algorithm, "kid": KIDS[algorithm]})
    text = f"{encode(head)}.{encode(payload)}".encode()
    signature = jwt.get_algorithm_by_name(algorithm).sign(text, PRIVATE[algorithm])
    return f"{text.decode()}.{base64.urlsafe_b64encode(signature).decode().rstrip('=')}"


def hs256(secret: bytes, claims: dict[str, Any], kid: str) -> str:
    import hmac

    text = f"{encode({'alg': 'HS256', 'kid': kid, 'typ': 'JWT'})}.{encode(claims)}"
    return f"{text}.{base64.urlsafe_b64encode(hmac.digest(secret, text.encode(), 'sha256')).decode().rstrip('=')}"


@pytest.mark.parametrize("algorithm", list(KIDS))
def test_each_algorithm_with_and_without_a_kid(scene: Scene, tenant: str, algorithm: str) -> None:
    assert scene.ask(signed(algorithm, good_claims(tenant), kid=KIDS[algorithm])).status_code == 200
    assert scene.ask(signed(algorithm, good_claims(tenant))).status_code == 200
    assert scene.ask(signed(algorithm, good_claims(tenant), kid=KIDS[algorithm], typ="at+jwt")).status_code == 200


@pytest.mark.parametrize(
    ("claims", "status"),
    [
        ({"scope": "memory:write memory:read"}, 200),
        ({"scope": ["memory:read", "unknown"]}, 200),
        ({"scope": None, "scp": ["memory:read"]}, 200),
        ({"scope": None, "scp": "memory:read"}, 200),
        ({"scope": "memory:write", "scp": "memory:read"}, 403),  # one of them counts
        ({"scope": ["memory:read memory:write"]}, 403),
        ({"scope": []}, 403),
        ({"scope": None}, 403),
        ({"scope": "memory"}, 403),
        ({"aud": ["other", "memory"]}, 200),
        ({"exp": -1}, 200),  # seconds from now: within the skew
        ({"nbf": 20}, 200),
    ],
    ids=str,
)
def test_what_a_token_may_say(scene: Scene, tenant: str, claims: dict[str, Any], status: int) -> None:
    claims = {name: int(time.time()) + value if isinstance(value, int) else value for name, value in claims.items()}
    assert scene.ask(signed("EdDSA", good_claims(tenant, **claims), kid="ed")).status_code == status


def attacks(tenant: str, issuer: Issuer) -> dict[str, str]:
    good, now = good_claims(tenant), int(time.time())
    text = json.dumps(good)
    evil = issuer.url.replace("/keys", "/evil")
    rsa_pem = PRIVATE["RS256"].public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    stranger = Ed25519PrivateKey.generate()
    public = jwt.get_algorithm_by_name("EdDSA").to_jwk(stranger.public_key(), as_dict=True)
    ed = signed("EdDSA", good, kid="ed")
    return {
        "none": f"{encode({'alg': 'none', 'kid': 'ed'})}.{encode(good)}.",
        "none with a signature": f"{encode({'alg': 'none', 'kid': 'ed'})}.{encode(good)}.{ed.rpartition('.')[2]}",
        "HS256 by the public RSA key": hs256(rsa_pem, good, "rsa"),
        "HS256 by the JWK": hs256(json.dumps(jwk("RS256", "rsa")).encode(), good, "rsa"),
        "HS256 by nothing": hs256(b"", good, "rsa"),
        "ES384": f"{encode({'alg': 'ES384', 'kid': 'ec'})}.{encode(good)}.AAAA",
        "signed by EdDSA, said to be RS256": raw("EdDSA", text, json.dumps({"alg": "RS256", "kid": "rsa"})),
        "another key's kid": signed("EdDSA", good, kid="ec"),
        "a stranger's key under a known kid": jwt.encode(good, stranger, "EdDSA", headers={"kid": "ed"}),
        "jku": jwt.encode(good, stranger, "EdDSA", headers={"kid": "evil", "jku": evil}),
        "x5u": jwt.encode(good, stranger, "EdDSA", headers={"kid": "evil", "x5u": evil}),
        "jwk": jwt.encode(good, stranger, "EdDSA", headers={"kid": "ed", "jwk": public}),
        "kid is a path": jwt.encode(good, stranger, "EdDSA", headers={"kid": "../../../../dev/null"}),
        "kid is SQL": jwt.encode(good, stranger, "EdDSA", headers={"kid": "x' UNION SELECT 'y"}),
        "kid is a URL": jwt.encode(good, stranger, "EdDSA", headers={"kid": evil}),
        "kid is a list": raw("EdDSA", text, '{"alg":"EdDSA","kid":["ed"]}'),
        "kid is long": raw("EdDSA", text, json.dumps({"alg": "EdDSA", "kid": "k" * 300})),
        "crit": raw("EdDSA", text, '{"alg":"EdDSA","kid":"ed","crit":["exp"],"exp":1}'),
        "a token within": raw("EdDSA", encode(ed), '{"alg":"EdDSA","kid":"ed","cty":"JWT"}'),
        "typ of a logout": signed("EdDSA", good, kid="ed", typ="logout+jwt"),
        "typ of a proof": signed("EdDSA", good, kid="ed", typ="dpop+jwt"),
        "typ is a number": raw("EdDSA", text, '{"alg":"EdDSA","kid":"ed","typ":7}'),
        "five parts": f"{ed}.AAAA.AAAA",
        "expired": signed("EdDSA", good_claims(tenant, exp=now - 40), kid="ed"),
        "not before": signed("EdDSA", good_claims(tenant, nbf=now + 600), kid="ed"),
        "made in the future": signed("EdDSA", good_claims(tenant, iat=now + 600), kid="ed"),
        "no end": signed("EdDSA", good_claims(tenant, exp=None), kid="ed"),
        "another audience": signed("EdDSA", good_claims(tenant, aud="memory2"), kid="ed"),
        "audience of a prefix": signed("EdDSA", good_claims(tenant, aud="mem"), kid="ed"),
        "no audience": signed("EdDSA", good_claims(tenant, aud=None), kid="ed"),
        "another issuer": signed("EdDSA", good_claims(tenant, iss="https://issuer.test/"), kid="ed"),
        "issuer is a list": raw("EdDSA", json.dumps(good | {"iss": ["https://issuer.test"]})),
        "a claim twice": raw("EdDSA", text[:-1] + ',"tenant":"other"}'),
        "exp twice": raw("EdDSA", '{"exp":99999999999,' + text[1:]),
        "alg twice": raw("EdDSA", text, '{"alg":"none","alg":"EdDSA","kid":"ed"}'),
        "exp is NaN": raw("EdDSA", text.replace(str(good["exp"]), "NaN")),
        "huge claims": raw("EdDSA", json.dumps(good | {"more": "x" * 20_000})),
        "many claims": raw("EdDSA", json.dumps(good | {f"c{i}": i for i in range(2000)})),
        "deep claims": raw("EdDSA", text[:-1] + ',"deep":' + "[" * 5000 + "]" * 5000 + "}"),
        "claims are a list": raw("EdDSA", f"[{text}]"),
        "jti is a number": raw("EdDSA", json.dumps(good | {"jti": 7})),
        "jti is long": raw("EdDSA", json.dumps(good | {"jti": "j" * 129})),
        "the installation's own tenant": signed("EdDSA", good_claims("_system"), kid="ed"),
    }


def test_forged_tokens(scene: Scene, tenant: str) -> None:
    before, began = len(scene.issuer.asked), time.monotonic()
    for name, token in attacks(tenant, scene.issuer).items():
        answer = scene.ask(token)
        assert answer.status_code == 401, (name, answer.text)
        check_error(answer, 401, "UNAUTHENTICATED")
    assert set(scene.issuer.asked) == {"/keys"}  # no URL of a token's was ever asked
    # At most one in ten seconds, whatever kids were made up.
    assert len(scene.issuer.asked) - before <= 1 + (time.monotonic() - began) / 10


def test_a_service_that_says_it_is_another(scene: Scene, tenant: str) -> None:
    token = signed("EdDSA", good_claims(tenant), kid="ed")
    assert scene.ask(token, **{"X-Service-Id": "agent"}).status_code == 200
    for other in ("Agent", "admin", "", "agent,admin"):
        answer = scene.ask(token, **{"X-Service-Id": other})
        assert "X-Service-Id" in check_error(answer, 403, "FORBIDDEN")["message"]
    # What is wrong with the credential comes first.
    check_error(scene.ask("x", **{"X-Service-Id": "agent"}), 401, "UNAUTHENTICATED")


def test_a_revoked_token_is_refused_and_no_other(scene: Scene, tenant: str) -> None:
    lost, kept = (signed("ES256", good_claims(tenant, jti=jti), kid="ec") for jti in ("lost", "kept"))
    assert (scene.ask(lost).status_code, scene.ask(kept).status_code) == (200, 200)
    words = ("token", "revoke", "lost", "--tenant", tenant, "--reason", "in a log file", "--yes")
    data = ("--data", str(scene.product.data), "--json")
    done = scene.product.ctl(*words, *data)
    assert done.returncode == 0, done.stderr
    refused = eventually(lambda: scene.ask(lost), lambda answer: answer.status_code != 200, within=20)
    assert "revoked" in check_error(refused, 401, "UNAUTHENTICATED")["message"]
    assert scene.ask(kept).status_code == 200
    # The same jti of another tenant's is another token.
    assert scene.ask(signed("ES256", good_claims(tenant + "-b", jti="lost"), kid="ec")).status_code == 200
    again = scene.product.ctl(*words, *data)
    assert (again.returncode, "is revoked already" in again.stderr) == (1, True), again.stderr
    verified = scene.product.ctl("audit", "verify", "--data", str(scene.product.data))
    assert verified.returncode in (0, 10), verified.stdout + verified.stderr
