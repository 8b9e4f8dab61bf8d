"""Files through the door: up, down, in part, and what damage on the disk does."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import httpx2
import pytest

from memory_layer.client import MemoryClient, MemoryLayerClientError
from tests.api.door import INTERNALS, check_error, create, eventually, fingerprint, sha256
from tests.support.product import Product

ARTIFACTS = "/v1/memory/artifacts"
MEGABYTE = bytes(range(256)) * 4096


def store(http: httpx2.Client, content: bytes, **params: str) -> str:
    stored = http.put(ARTIFACTS, content=content, params=params)
    assert stored.status_code == 201, stored.text
    return str(stored.json()["artifactId"])


def on_disk(product: Product, tenant: str) -> Path:
    """The one file that a tenant has in the object store."""
    (path,) = (p for p in (product.data / "objects" / tenant).rglob("*") if p.is_file())
    return path


def test_a_file_goes_in_and_comes_out(http: httpx2.Client) -> None:
    node = create(http, content="with a file")
    content = b"%PDF-1.7 a small file"
    stored = http.put(
        ARTIFACTS,
        content=content,
        params={"memoryNodeId": node, "name": "report.pdf"},
        headers={
            "Content-Type": "application/pdf",
            "X-Content-SHA256": sha256(content),
            "X-Manifest-Signature-Id": "manifest-1",
        },
    )
    assert stored.status_code == 201, stored.text
    answer = stored.json()
    assert stored.headers["x-audit-seq"] == str(answer["audit"]["seq"])
    shown = http.get(f"{ARTIFACTS}/{answer['artifactId']}").json()
    assert shown == {name: value for name, value in answer.items() if name not in ("audit", "auditId")}
    assert shown["sha256"] == sha256(content)
    assert shown["sizeBytes"] == len(content)
    assert shown["contentType"] == "application/pdf"
    assert shown["name"] == "report.pdf"
    assert shown["memoryNodeId"] == node
    assert shown["manifestSignatureId"] == "manifest-1"
    assert not INTERNALS.search(shown["url"])
    assert http.get(f"/v1/memory/nodes/{node}").json()["artifacts"] == [shown]

    down = http.get(f"{ARTIFACTS}/{answer['artifactId']}/content")
    assert down.status_code == 200
    assert down.content == content
    assert down.headers["content-type"] == "application/pdf"
    assert down.headers["content-length"] == str(len(content))
    assert down.headers["x-content-sha256"] == sha256(content)
    assert down.headers["etag"] == f'"{sha256(content)}"'
    assert down.headers["accept-ranges"] == "bytes"
    # Somebody's upload must not run in a browser.
    assert down.headers["x-content-type-options"] == "nosniff"
    assert down.headers["content-disposition"].startswith("attachment")


def test_an_empty_file(http: httpx2.Client) -> None:
    artifact = store(http, b"", name="empty")
    assert http.get(f"{ARTIFACTS}/{artifact}").json()["sizeBytes"] == 0
    down = http.get(f"{ARTIFACTS}/{artifact}/content")
    assert (down.status_code, down.content) == (200, b"")
    ranged = http.get(f"{ARTIFACTS}/{artifact}/content", headers={"Range": "bytes=0-"})
    check_error(ranged, 416, "RANGE_NOT_SATISFIABLE")


def test_the_content_type_comes_back_as_it_was(http: httpx2.Client) -> None:
    for kind in ("text/plain", "text/html; charset=latin-1", "application/x-tar", "weird"):
        stored = http.put(ARTIFACTS, content=kind.encode(), headers={"Content-Type": kind}).json()
        assert http.get(f"{ARTIFACTS}/{stored['artifactId']}/content").headers["content-type"] == kind
    without = store(http, b"no type")
    assert http.get(f"{ARTIFACTS}/{without}").json()["contentType"] == "application/octet-stream"


@pytest.mark.parametrize(
    "name",
    [
        "../../etc/passwd",
        "/etc/passwd",
        "..",
        "a/b\\c",
        "Zoë 🐕.txt",
        'q"uote;x=1',
        "line\r\nSet-Cookie: a=b",
        "null",
        "%2e%2e",
        " ",
    ],
)
def test_names_are_only_names(http: httpx2.Client, product: Product, tenant: str, name: str) -> None:
    artifact = store(http, name.encode(), name=name)
    assert http.get(f"{ARTIFACTS}/{artifact}").json()["name"] == name
    down = http.get(f"{ARTIFACTS}/{artifact}/content")
    assert down.content == name.encode()
    assert "set-cookie" not in down.headers
    assert unquote(down.headers["content-disposition"].partition("''")[2]) == name
    assert on_disk(product, tenant).name == sha256(name.encode())


def test_ranges(http: httpx2.Client) -> None:
    content = bytes(range(200))
    url = f"{ARTIFACTS}/{store(http, content)}/content"
    for header, first, last in (
        ("bytes=0-0", 0, 0),
        ("bytes=0-", 0, 199),
        ("bytes=10-19", 10, 19),
        ("bytes=190-5000", 190, 199),
        ("bytes=-10", 190, 199),
        ("bytes=-5000", 0, 199),
        ("bytes=199-", 199, 199),
    ):
        part = http.get(url, headers={"Range": header})
        assert part.status_code == 206, header
        assert part.content == content[first : last + 1]
        assert part.headers["content-range"] == f"bytes {first}-{last}/200"
        assert part.headers["content-length"] == str(last - first + 1)
    # What is no range, or several, is answered whole (RFC 9110, 14.2).
    for header in (
        "bytes=19-10",
        "bytes=",
        "bytes=-",
        "bytes=a-b",
        "lines=1-2",
        "bytes=0-1,5-6",
        "bytes=" + "9" * 5000 + "-",
    ):
        whole = http.get(url, headers={"Range": header})
        assert (whole.status_code, whole.content) == (200, content), header
    for header in ("bytes=200-", "bytes=5000-6000", "bytes=-0"):
        check_error(http.get(url, headers={"Range": header}), 416, "RANGE_NOT_SATISFIABLE")


def test_head(http: httpx2.Client) -> None:
    artifact = store(http, MEGABYTE)
    for path in (f"{ARTIFACTS}/{artifact}", f"{ARTIFACTS}/{artifact}/content"):
        head, get = http.head(path), http.get(path)
        assert head.status_code == 200
        assert head.content == b""
        assert {**head.headers, "x-request-id": ""} == {**get.headers, "x-request-id": ""}
    part = http.head(f"{ARTIFACTS}/{artifact}/content", headers={"Range": "bytes=0-9"})
    assert (part.status_code, part.headers["content-length"]) == (206, "10")


def test_fifty_megabytes_stream_both_ways(http: httpx2.Client, product: Product) -> None:
    def chunks() -> Iterator[bytes]:
        for n in range(50):
            yield n.to_bytes(4, "big") + MEGABYTE[4:]

    expected = hashlib.sha256(b"".join(chunks())).hexdigest()
    stored = http.put(ARTIFACTS, content=chunks(), headers={"X-Content-SHA256": expected})
    assert stored.status_code == 201, stored.text
    assert stored.json()["sizeBytes"] == 50 * 1024 * 1024
    digest = hashlib.sha256()
    with http.stream("GET", f"{ARTIFACTS}/{stored.json()['artifactId']}/content") as down:
        for block in down.iter_bytes():
            digest.update(block)
    assert digest.hexdigest() == expected
    middle = http.get(
        f"{ARTIFACTS}/{stored.json()['artifactId']}/content", headers={"Range": "bytes=31457280-31457283"}
    )
    assert middle.content == (30).to_bytes(4, "big")


def test_a_wrong_hash_keeps_nothing(http: httpx2.Client, product: Product, tenant: str) -> None:
    before = fingerprint(product, tenant)
    refused = http.put(
        ARTIFACTS, content=iter([MEGABYTE, MEGABYTE]), headers={"X-Content-SHA256": sha256(b"something else")}
    )
    check_error(refused, 422, "CHECKSUM_MISMATCH")
    assert fingerprint(product, tenant) == before
    assert not (product.data / "objects" / tenant).exists()


def test_equal_bytes_are_two_artifacts_of_one_object(http: httpx2.Client, product: Product, tenant: str) -> None:
    one, two = store(http, b"same", name="one"), store(http, b"same", name="two")
    assert one != two
    assert on_disk(product, tenant).read_bytes() == b"same"
    for artifact in (one, two):
        assert http.get(f"{ARTIFACTS}/{artifact}/content").content == b"same"


def damage(path: Path, content: bytes) -> None:
    path.chmod(0o600)
    path.write_bytes(content)


@pytest.mark.parametrize("size", [10, 3 * len(MEGABYTE) + 7])
@pytest.mark.parametrize("kind", ["last byte", "first byte", "cut", "longer", "empty"])
def test_damaged_bytes_are_never_delivered_whole(
    http: httpx2.Client, product: Product, tenant: str, size: int, kind: str
) -> None:
    content = (MEGABYTE * 4)[:size]
    artifact = store(http, content)
    path = on_disk(product, tenant)
    damage(
        path,
        {
            "last byte": content[:-1] + bytes([content[-1] ^ 1]),
            "first byte": bytes([content[0] ^ 1]) + content[1:],
            "cut": content[:-1],
            "longer": content + b"x",
            "empty": b"",
        }[kind],
    )
    got = b""
    failed = False
    try:
        with http.stream("GET", f"{ARTIFACTS}/{artifact}/content") as down:
            failed = down.status_code != 200
            for block in down.iter_raw():
                got += block
    except httpx2.RemoteProtocolError:
        failed = True
    if kind == "longer":
        # More than was stored is not read: the bytes that are answered are still the stored ones.
        assert got == content
        assert not failed
        return
    assert failed
    assert len(got) < size or got.startswith(b'{"error"')
    if size == 10:
        check_error(http.get(f"{ARTIFACTS}/{artifact}/content"), 503, "OBJECT_STORE_UNAVAILABLE")


def test_a_lost_object_is_an_error_of_the_store(http: httpx2.Client, product: Product, tenant: str) -> None:
    artifact = store(http, b"soon lost")
    on_disk(product, tenant).unlink()
    check_error(http.get(f"{ARTIFACTS}/{artifact}/content"), 503, "OBJECT_STORE_UNAVAILABLE")
    assert http.get(f"{ARTIFACTS}/{artifact}").status_code == 200
    # The same bytes again mend it.
    store(http, b"soon lost")
    assert http.get(f"{ARTIFACTS}/{artifact}/content").content == b"soon lost"


def test_an_upload_that_breaks_off_leaves_nothing(http: httpx2.Client, product: Product, tenant: str) -> None:
    incoming = product.data / "objects" / ".incoming"

    def broken() -> Iterator[bytes]:
        yield MEGABYTE
        # Only when the server has begun to store it is there anything to leave behind.
        eventually(lambda: list(incoming.iterdir()), lambda begun: begun != [])
        raise ConnectionResetError

    before = fingerprint(product, tenant)
    with pytest.raises(ConnectionResetError):
        http.put(ARTIFACTS, content=broken())
    eventually(lambda: fingerprint(product, tenant), lambda after: after == before)


@pytest.mark.parametrize(
    "kind", ["multipart/form-data; boundary=x", "Multipart/Mixed; boundary=x", "multipart/related"]
)
def test_an_envelope_is_not_stored_with_the_file(http: httpx2.Client, product: Product, tenant: str, kind: str) -> None:
    before = fingerprint(product, tenant)
    body = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.txt"\r\n\r\nhello\r\n--x--\r\n'
    refused = http.put(ARTIFACTS, content=body, headers={"Content-Type": kind})
    check_error(refused, 415, "UNSUPPORTED_MEDIA_TYPE")
    assert "curl -T" in refused.json()["error"]["message"]
    assert fingerprint(product, tenant) == before


@pytest.mark.parametrize("coding", ["gzip", "GZIP", "br", "gzip, identity", "x"])
def test_what_is_encoded_for_the_way_is_not_stored_so(
    http: httpx2.Client, product: Product, tenant: str, coding: str
) -> None:
    before = fingerprint(product, tenant)
    headers = {"Content-Encoding": coding}
    check_error(http.put(ARTIFACTS, content=b"\x1f\x8b", headers=headers), 415, "UNSUPPORTED_MEDIA_TYPE")
    json = headers | {"Content-Type": "application/json"}
    for path in ("/v1/memory/nodes", "/v1/memory/nodes:batch", "/v1/memory/search"):
        check_error(http.post(path, content=b"\x1f\x8b", headers=json), 415, "UNSUPPORTED_MEDIA_TYPE")
    assert fingerprint(product, tenant) == before
    assert http.put(ARTIFACTS, content=b"plain", headers={"Content-Encoding": "identity"}).status_code == 201


def test_a_download_overwrites_nothing(product: Product, http: httpx2.Client, tmp_path: Path) -> None:
    with MemoryClient(product.url, product.token) as memory:
        stored = memory.upload(_file(tmp_path / "settings", b"not mine"), name=".bashrc")
        home = tmp_path / "home"
        home.mkdir()
        mine = _file(home / ".bashrc", b"my own")
        (home / "dangling").symlink_to(home / "nowhere")
        for to in (home, mine, home / "dangling"):
            with pytest.raises(MemoryLayerClientError) as refused:
                memory.download(stored["artifactId"], to)
            assert refused.value.code == "CONFLICT"
        done = product.ctl("artifacts", "get", stored["artifactId"], "--output", str(home))
        assert done.returncode != 0
        assert "overwrites nothing" in done.stderr
        assert mine.read_bytes() == b"my own"
        assert sorted(path.name for path in home.iterdir()) == [".bashrc", "dangling"]
        got = memory.download(stored["artifactId"], home / "fresh")
        assert Path(got["path"]).read_bytes() == b"not mine"


def _file(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path
