"""The product with its artifacts in S3: links instead of bytes, and objects of the bucket registered over HTTP."""

from __future__ import annotations

import io
import uuid
from collections.abc import Iterator

import httpx2
import pytest

from memory_layer.client import AsyncMemoryClient, MemoryClient, MemoryLayerClientError
from tests.api.door import NO_PII, check_error, connect, create, sha256
from tests.support.product import Product, running_product
from tests.support.s3_server import REGION, S3Server

ARTIFACTS = "/v1/memory/artifacts"


@pytest.fixture(scope="module")
def bucket(moto_s3: S3Server) -> str:
    return moto_s3.make_bucket()


@pytest.fixture(scope="module")
def product(moto_s3: S3Server, bucket: str) -> Iterator[Product]:
    environment = {
        "S3_ENDPOINT": moto_s3.endpoint,
        "S3_BUCKET": bucket,
        "ARCHIVE_BUCKET": bucket,
        "S3_REGION": REGION,
        "S3_ACCESS_KEY": moto_s3.access_key,
        "S3_SECRET": moto_s3.secret,
        "EMBEDDINGS_PROVIDER": "none",
    }
    with running_product(environment=environment) as running:
        yield running


def test_a_link_instead_of_the_bytes(http: httpx2.Client, bucket: str) -> None:
    stored = http.put(
        ARTIFACTS, content=b"through a link", params={"name": "ä b.txt"}, headers={"Content-Type": "text/x"}
    )
    assert stored.status_code == 201, stored.text
    assert stored.json()["url"].startswith(f"s3://{bucket}/")
    url = f"{ARTIFACTS}/{stored.json()['artifactId']}/content"
    assert http.get(url).content == b"through a link"
    for method in ("GET", "HEAD"):
        answer = http.request(method, url, params={"link": "true"})
        assert (answer.status_code, answer.content) == (302, b"")
        assert answer.headers["cache-control"] == "no-store"
    link = http.get(url, params={"link": "true"}).headers["location"]
    followed = httpx2.get(link)  # without a token
    assert (followed.status_code, followed.content) == (200, b"through a link")
    assert followed.headers["content-disposition"].startswith("attachment")
    assert followed.headers["content-type"] == "text/x"
    part = http.get(url, headers={"Range": "bytes=0-6"})
    assert (part.status_code, part.content) == (206, b"through")


async def test_both_clients_give_links(http: httpx2.Client, product: Product, tenant: str) -> None:
    token = product.issue(tenant=tenant)
    with MemoryClient(product.url, token) as memory:
        stored = memory.upload(io.BytesIO(b"through a link"), name="a.txt")
        links = [memory.link(stored["artifactId"])]
        with pytest.raises(MemoryLayerClientError, match="NOT_FOUND"):
            memory.link(str(uuid.uuid4()))
        assert memory.download(stored["artifactId"], io.BytesIO())["sha256"] == sha256(b"through a link")
    async with AsyncMemoryClient(product.url, token) as memory:
        links.append(await memory.link(stored["artifactId"]))
        with pytest.raises(MemoryLayerClientError, match="NOT_FOUND"):
            await memory.link(str(uuid.uuid4()))
    for link in links:
        assert link is not None
        followed = httpx2.get(link)  # without a token
        assert (followed.status_code, followed.content) == (200, b"through a link")


def test_what_is_hidden_has_no_link(http: httpx2.Client, product: Product, tenant: str) -> None:
    node = create(http, content="secret", piiFlags={"containsPii": True})
    stored = http.put(ARTIFACTS, content=b"hidden", params={"memoryNodeId": node}).json()
    url = f"{ARTIFACTS}/{stored['artifactId']}/content"
    assert http.get(url, params={"link": "true"}).status_code == 302
    with connect(product, tenant, NO_PII, service="no-pii") as reader:
        for params in ({}, {"link": "true"}):
            check_error(reader.get(url, params=params), 403, "FORBIDDEN")
    with connect(product, f"{tenant}-other") as other:
        check_error(other.get(url, params={"link": "true"}), 404, "NOT_FOUND")


def test_an_object_of_the_bucket_over_http(http: httpx2.Client, moto_s3: S3Server, bucket: str, tenant: str) -> None:
    content = b"laid there by a pipeline"
    version = moto_s3.client().put_object(Bucket=bucket, Key=f"{tenant}/models/a", Body=content)["VersionId"]
    body = {"url": f"s3://{bucket}/{tenant}/models/a", "sha256": sha256(content), "sizeBytes": len(content)}
    stored = http.post(ARTIFACTS, json=body)
    assert stored.status_code == 201, stored.text
    assert stored.json()["versionId"] == version
    moto_s3.client().put_object(Bucket=bucket, Key=f"{tenant}/models/a", Body=b"written over")
    assert http.get(f"{ARTIFACTS}/{stored.json()['artifactId']}/content").content == content
    covered = body | {"url": f"{body['url']}?versionId={version}"}
    check_error(http.post(ARTIFACTS, json=covered), 409, "CONFLICT")
    wrong = http.post(ARTIFACTS, json=body | {"sha256": sha256(b"x"), "sizeBytes": len(b"written over")})
    assert sha256(b"written over") in check_error(wrong, 422, "CHECKSUM_MISMATCH")["message"]
    for url in (f"s3://{bucket}-2/{tenant}/models/a", f"s3://{bucket}/{tenant}x/models/a", f"s3://{bucket}/{tenant}"):
        check_error(http.post(ARTIFACTS, json=body | {"url": url}), 422, "VALIDATION_ERROR")
