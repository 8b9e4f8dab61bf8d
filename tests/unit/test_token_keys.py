"""Which keys a token may be signed with, and when the issuer's are fetched: from a real server, by a clock that the test moves."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from memory_layer import config
from memory_layer.errors import IssuerUnavailable, PolicyRefused, UsageError
from memory_layer.stores.token_keys import FetchedKeys, FixedKeys, open_token_keys
from tests.support.jwks_server import PRIVATE, Issuer, jwk, running_issuer


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def issuer() -> Iterator[Issuer]:
    with running_issuer() as running:
        yield running


def pem(algorithm: str) -> str:
    return str(PRIVATE[algorithm].public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode())


async def kids(keys: FetchedKeys | FixedKeys, kid: str | None, algorithm: str = "EdDSA") -> list[str | None]:
    return [key.kid for key in await keys.find(kid, algorithm)]


async def test_one_pem_key_is_that_of_every_token_of_its_type() -> None:
    keys = FixedKeys(pem("RS256"))
    assert await kids(keys, "whatever", "RS256") == await kids(keys, None, "PS256") == [None]
    for other in ("EdDSA", "ES256", "HS256", "none"):
        assert await kids(keys, None, other) == []


async def test_several_pem_keys_go_by_their_kid() -> None:
    keys = FixedKeys(f"kid: one\n{pem('EdDSA')}kid: two\r\n{pem('ES256')}# a comment\n{pem('RS256')}")
    assert await kids(keys, "one") == ["one"]
    assert await kids(keys, "two") == []  # of another type
    assert await kids(keys, "two", "ES256") == ["two"]
    assert await kids(keys, "unknown", "RS256") == [None]


async def test_keys_that_no_signature_may_be_checked_with_are_left_out() -> None:
    weak = rsa.generate_private_key(65537, 1024)  # noqa: S505 - that is the point
    small = jwk("RS256", "small")
    small["n"] = jwt.get_algorithm_by_name("RS256").to_jwk(weak.public_key(), as_dict=True)["n"]
    left_out = [
        small,
        {"kty": "oct", "k": "c2VjcmV0", "kid": "secret"},
        jwk("EdDSA", "for encryption", use="enc"),
        jwk("EdDSA", "for signing", key_ops=["sign"]),
        jwk("EdDSA", "private", d="AAAA"),
        jwk("EdDSA", "of another algorithm", alg="RS256"),
        jwk("EdDSA", 7),  # type: ignore[arg-type]
        {"kty": "EC", "crv": "P-256", "x": "AA", "y": "AA", "kid": "no point"},
        "no key",
    ]
    keys = FixedKeys(json.dumps({"keys": [*left_out, jwk("RS256", "only PS", alg="PS256"), jwk("EdDSA", "good")]}))
    assert await kids(keys, None) == ["good"]
    assert await kids(keys, None, "RS256") == []
    assert await kids(keys, None, "PS256") == ["only PS"]


@pytest.mark.parametrize(
    "text", ["", "hello", '{"keys": []}', "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----"]
)
def test_no_key_at_all_is_a_setting_that_does_not_fit(text: str) -> None:
    with pytest.raises(UsageError, match="JWT_PUBLIC_KEY holds no public key"):
        FixedKeys(text)


async def test_a_set_is_fetched_once_and_for_a_new_kid_again_after_a_pause(issuer: Issuer) -> None:
    clock = Clock()
    keys = FetchedKeys(issuer.url, clock=clock)
    issuer.publish(jwk("EdDSA", "old"))
    assert await kids(keys, "old") == ["old"]
    issuer.publish(jwk("EdDSA", "old"), jwk("EdDSA", "new"))
    clock.now += 5
    for _ in range(20):  # whatever names are made up
        assert await kids(keys, "new") == []
    assert len(issuer.asked) == 1
    clock.now += 6
    found = await asyncio.gather(*(kids(keys, kid) for kid in ("new", "made up", "new", "old")))
    assert found == [["new"], [], ["new"], ["old"]]
    assert len(issuer.asked) == 2
    await keys.close()


async def test_a_key_that_is_withdrawn_is_gone_after_five_minutes(issuer: Issuer) -> None:
    clock = Clock()
    keys = FetchedKeys(issuer.url, clock=clock)
    issuer.publish(jwk("EdDSA", "old"))
    await keys.find("old", "EdDSA")
    issuer.publish(jwk("ES256", "new"))
    clock.now += 301
    assert await kids(keys, "old") == ["old"]  # the request does not wait
    assert keys._renewal is not None
    await keys._renewal
    assert await kids(keys, "old") == []
    await keys.close()


@pytest.mark.parametrize("what", ["500", "302", "no set", "too large", "no key"])
async def test_what_is_no_set_leaves_the_last_one_for_an_hour(issuer: Issuer, what: str) -> None:
    clock = Clock()
    keys = FetchedKeys(issuer.url, clock=clock)
    issuer.publish(jwk("EdDSA", "known"))
    await keys.find("known", "EdDSA")
    issuer.status = {"500": 500, "302": 302}.get(what, 200)
    issuer.body = {"no set": b"[]", "too large": b" " * 2**21, "no key": b'{"keys":[]}'}.get(what, issuer.body)
    clock.now += 3000
    assert await kids(keys, "known") == ["known"]
    assert await kids(keys, "unknown") == []
    assert set(issuer.asked) == {"/keys"}  # nowhere that a redirect leads
    clock.now += 700
    with pytest.raises(IssuerUnavailable):
        await keys.find("known", "EdDSA")
    await keys.close()


async def test_an_issuer_that_was_never_there(issuer: Issuer) -> None:
    clock = Clock()
    keys = FetchedKeys(issuer.url.replace("/keys", "/").replace("127.0.0.1", "127.0.0.254"), clock=clock)
    for _ in range(3):
        with pytest.raises(IssuerUnavailable):
            await keys.find("known", "EdDSA")
    await keys.close()


def test_where_the_settings_say_that_the_keys_are() -> None:
    def own() -> str:
        return pem("EdDSA")

    def opened(**settings: object) -> object:
        return open_token_keys(config.load({}, **settings), own)

    url = "https://login.test/keys?tenant=7"
    assert isinstance(opened(), FixedKeys)
    fetched = opened(jwt_jwks_url=url)
    assert isinstance(fetched, FetchedKeys)
    assert fetched._url == url
    with pytest.raises(UsageError, match="are both set"):
        opened(jwt_jwks_url=url, jwt_public_key=pem("EdDSA"))
    with pytest.raises(PolicyRefused, match="JWT_JWKS_URL begins with http://"):
        opened(jwt_jwks_url="http://login.test/keys", require_kms=True)
    with pytest.raises(UsageError, match="JWT_JWKS_URL"):
        opened(jwt_jwks_url="ftp://login.test/keys")
