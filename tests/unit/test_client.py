"""The SDK against a real HTTP server that answers as each test scripts it."""

from __future__ import annotations

import array
import asyncio
import base64
import hashlib
import io
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from memory_layer.client import AsyncMemoryClient, MemoryClient, MemoryLayerClientError
from memory_layer.client.calls import encode_embedding, encode_vector
from memory_layer.client.retry import parse_retry_after


@dataclass
class Seen:
    method: str
    path: str
    query: dict[str, list[str]]
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Answer:
    """``cut`` closes the connection instead of answering, or after that many bytes of the body."""

    status: int = 200
    body: Any = None
    headers: dict[str, str] = field(default_factory=dict)
    cut: int | None = None


def error(status: int, code: str, *, retryable: bool = False, **headers: str) -> Answer:
    body = {"code": code, "message": "what happened", "details": [], "requestId": "r-1", "retryable": retryable}
    return Answer(status, {"error": body}, {name.replace("_", "-"): value for name, value in headers.items()})


class Server:
    """Answers with the scripted answers in turn, the last one for ever."""

    def __init__(self) -> None:
        self.seen: list[Seen] = []
        self.answers: list[Answer] = [Answer()]
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self) -> None:
                outer.seen.append(self.record())
                answer = outer.answers.pop(0) if len(outer.answers) > 1 else outer.answers[0]
                raw = answer.body if isinstance(answer.body, bytes) else json.dumps(answer.body).encode()
                raw = b"" if answer.body is None else raw
                if answer.cut == 0:
                    self.connection.shutdown(socket.SHUT_RDWR)
                    self.close_connection = True
                    return
                self.send_response(answer.status)
                for name, value in answer.headers.items():
                    self.send_header(name, value)
                if answer.status != 204:
                    self.send_header("Content-Length", str(len(raw)))
                self.end_headers()
                self.wfile.write(raw[: answer.cut])
                if answer.cut is not None:
                    self.wfile.flush()
                    self.connection.shutdown(socket.SHUT_RDWR)
                    self.close_connection = True

            def record(self) -> Seen:
                url = urlsplit(self.path)
                headers = {name.lower(): value for name, value in self.headers.items()}
                return Seen(self.command, url.path, parse_qs(url.query), headers, self.read_body(headers))

            def read_body(self, headers: dict[str, str]) -> bytes:
                if headers.get("transfer-encoding") != "chunked":
                    return self.rfile.read(int(headers.get("content-length", 0)))
                body = b""
                while size := int(self.rfile.readline(), 16):
                    body += self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()
                return body

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = answer  # noqa: N815

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()


@pytest.fixture
def server() -> Iterator[Server]:
    running = Server()
    yield running
    running.http.shutdown()
    running.http.server_close()


@pytest.fixture(params=["sync", "async"])
def use(request: pytest.FixtureRequest, server: Server) -> Callable[..., Any]:
    """Call a method on either twin: the same tests hold for both."""

    def call(method: str, *args: Any, **kwargs: Any) -> Any:
        retries = kwargs.pop("retries", 4)
        if request.param == "sync":
            with MemoryClient(server.url, "secret", retries=retries, timeout=5) as memory:
                result = getattr(memory, method)(*args, **kwargs)
                return list(result) if method == "list" else result

        async def run() -> Any:
            async with AsyncMemoryClient(server.url, "secret", retries=retries, timeout=5) as memory:
                if method == "list":
                    return [node async for node in memory.list(*args, **kwargs)]
                return await getattr(memory, method)(*args, **kwargs)

        return asyncio.run(run())

    return call


def test_jobs_are_asked_cancelled_and_retried(server: Server, use: Callable[..., Any]) -> None:
    server.answers = [Answer(200, {"jobId": "j 1", "status": "dead"})]
    assert use("job", "j 1")["status"] == "dead"
    use("cancel_job", "j 1")
    use("retry_job", "j 1", idempotency_key="mine")
    asked, cancelled, retried = server.seen
    assert (asked.method, asked.path) == ("GET", "/v1/memory/vectors/jobs/j%201")
    assert (cancelled.method, cancelled.path) == ("POST", "/v1/memory/vectors/jobs/j%201/cancel")
    assert len(cancelled.headers["idempotency-key"]) == 36
    assert (retried.path, retried.headers["idempotency-key"]) == ("/v1/memory/vectors/jobs/j%201/retry", "mine")


def test_remember_sends_what_the_api_reads(server: Server, use: Callable[..., Any]) -> None:
    server.answers = [Answer(201, {"memoryNodeId": "n1", "version": 1})]
    made = use(
        "remember",
        "Hello",
        owner="ann",
        metadata={"k": [1, None]},
        embedding={"model": "m", "vector": [1.0, -2.5]},
        embedding_id="mine",
        ttl_seconds=3600,
        subjects=["ann", "bob"],
        occurred_at="2026-01-02T03:04:05Z",
        thread="a walk",
        position=0,
        wait_indexed=True,
    )
    assert made["memoryNodeId"] == "n1"
    sent = server.seen[0]
    assert (sent.method, sent.path, sent.query) == ("POST", "/v1/memory/nodes", {"wait": ["indexed"]})
    assert sent.headers["authorization"] == "Bearer secret"
    assert sent.headers["content-type"] == "application/json"
    assert len(sent.headers["idempotency-key"]) == 36
    vector = base64.b64encode(array.array("f", [1.0, -2.5]).tobytes()).decode()
    assert sent.json == {
        "content": "Hello",
        "owner": "ann",
        "metadata": {"k": [1, None]},
        "embedding": {"model": "m", "dimension": 2, "vector": vector},
        "embeddingId": "mine",
        "ttlSeconds": 3600,
        "subjects": ["ann", "bob"],
        "occurredAt": "2026-01-02T03:04:05Z",
        "thread": "a walk",
        "position": 0,
    }


def test_update_tells_clear_from_leave_alone(server: Server, use: Callable[..., Any]) -> None:
    server.answers = [Answer(200, {"version": 3})]
    use("update", "n/1", content=None, metadata={"a": 1}, if_match=2)
    sent = server.seen[0]
    assert (sent.method, sent.path) == ("PATCH", "/v1/memory/nodes/n%2F1")
    assert sent.headers["if-match"] == '"2"'
    assert sent.json == {"content": None, "metadata": {"a": 1}}


def test_update_of_nothing_is_refused_before_it_is_sent(server: Server, use: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match="nothing to update"):
        use("update", "n1")
    assert server.seen == []


def test_list_follows_the_cursor(server: Server, use: Callable[..., Any]) -> None:
    server.answers = [
        Answer(200, {"items": [{"memoryNodeId": "a"}, {"memoryNodeId": "b"}], "nextCursor": "c 1"}),
        Answer(200, {"items": [{"memoryNodeId": "c"}], "nextCursor": None}),
    ]
    found = use("list", {"owner": "ann"}, page_size=2)
    assert [node["memoryNodeId"] for node in found] == ["a", "b", "c"]
    assert server.seen[0].query == {"limit": ["2"], "filter": ['{"owner":"ann"}']}
    assert server.seen[1].query["cursor"] == ["c 1"]


def test_history_is_whole(server: Server, use: Callable[..., Any]) -> None:
    server.answers = [
        Answer(200, {"items": [{"seq": 1}], "nextCursor": "c"}),
        Answer(200, {"items": [{"seq": 2}], "nextCursor": None}),
    ]
    assert [entry["seq"] for entry in use("history", "n1")] == [1, 2]
    assert server.seen[1].path == "/v1/memory/nodes/n1/history"
    assert server.seen[1].query["cursor"] == ["c"]


def test_delete_and_hold_give_the_sequence_number(server: Server, use: Callable[..., Any]) -> None:
    server.answers = [Answer(204, None, {"X-Audit-Seq": "7"})]
    assert use("delete", "n1") == {"auditSeq": 7}
    assert use("hold", "n1", "because", case_id="c9") == {"auditSeq": 7}
    assert server.seen[1].json == {"legalHold": True, "reason": "because", "caseId": "c9"}
    assert use("release", "n1", "over") == {"auditSeq": 7}
    assert server.seen[2].json == {"legalHold": False, "reason": "over"}


def test_search_needs_something_to_look_for(server: Server, use: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match="search needs"):
        use("search")
    server.answers = [Answer(200, {"results": [], "exact": True})]
    use("search", "dogs", top_k=3, filter={"owner": "x"}, score_threshold=0.5, mode="hybrid")
    assert server.seen[0].json == {
        "query": "dogs",
        "topK": 3,
        "filter": {"owner": "x"},
        "scoreThreshold": 0.5,
        "mode": "hybrid",
    }


def test_an_error_answer_carries_everything(server: Server, use: Callable[..., Any]) -> None:
    server.answers = [
        Answer(
            422,
            {
                "error": {
                    "code": "VALIDATION_ERROR",
                    "message": "does not fit",
                    "details": [{"path": "owner", "problem": "is empty"}],
                    "requestId": "r-9",
                    "retryable": False,
                }
            },
        )
    ]
    with pytest.raises(MemoryLayerClientError) as caught:
        use("remember", "x", owner="")
    failure = caught.value
    assert (failure.code, failure.status, failure.request_id, failure.retryable) == (
        "VALIDATION_ERROR",
        422,
        "r-9",
        False,
    )
    assert failure.details == ({"path": "owner", "problem": "is empty"},)
    assert str(failure) == "VALIDATION_ERROR: does not fit (owner: is empty)"
    assert len(server.seen) == 1


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ("The filter is not valid: unknown operator (at filter.$x).", "(at filter.$x)."),
        ("filter.$x: unknown operator.", "filter.$x: unknown operator."),
        ("The filter is not valid.", "not valid. (filter.$x: unknown operator)"),
    ],
)
def test_a_problem_is_reported_once(message: str, said: str) -> None:
    failure = MemoryLayerClientError(
        "VALIDATION_ERROR", message, details=({"path": "filter.$x", "problem": "unknown operator"},)
    )
    assert str(failure).endswith(said)
    assert str(failure).count("unknown operator") == 1


def test_a_proxys_page_is_no_riddle(server: Server, use: Callable[..., Any]) -> None:
    server.answers = [Answer(404, b"<html>not here</html>")]
    with pytest.raises(MemoryLayerClientError, match="Check the URL") as caught:
        use("get", "n1")
    assert caught.value.code == "HTTP_404"


@pytest.mark.parametrize(
    "trouble",
    [
        error(503, "SIGNER_UNAVAILABLE", retryable=True),
        error(429, "RATE_LIMITED", retryable=True, Retry_After="0"),
        error(409, "IDEMPOTENCY_IN_PROGRESS", retryable=True),
        Answer(502, b"bad gateway"),
        Answer(cut=0),
    ],
    ids=["503", "429", "in-progress", "502", "cut"],
)
def test_a_write_is_repeated_with_the_same_key(server: Server, use: Callable[..., Any], trouble: Answer) -> None:
    server.answers = [trouble, trouble, Answer(201, {"memoryNodeId": "n1"})]
    assert use("remember", "x", owner="ann")["memoryNodeId"] == "n1"
    assert len(server.seen) == 3
    assert len({seen.headers["idempotency-key"] for seen in server.seen}) == 1
    assert len({seen.body for seen in server.seen}) == 1


@pytest.mark.parametrize(("status", "code"), [(409, "LEGAL_HOLD"), (404, "NOT_FOUND"), (422, "IDEMPOTENCY_MISMATCH")])
def test_a_decision_is_not_repeated(server: Server, use: Callable[..., Any], status: int, code: str) -> None:
    server.answers = [error(status, code)]
    with pytest.raises(MemoryLayerClientError) as caught:
        use("delete", "n1")
    assert caught.value.code == code
    assert len(server.seen) == 1


def test_retries_end(server: Server, use: Callable[..., Any]) -> None:
    server.answers = [error(503, "DATABASE_UNAVAILABLE", retryable=True)]
    with pytest.raises(MemoryLayerClientError) as caught:
        use("get", "n1", retries=2)
    assert caught.value.retryable
    assert len(server.seen) == 3


def test_retry_after_is_waited_for_and_reported(
    server: Server, use: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    server.answers = [error(429, "RATE_LIMITED", retryable=True, Retry_After="1"), Answer(200, {"results": []})]
    started = time.monotonic()
    use("search", "x")
    assert time.monotonic() - started >= 1.0
    (line,) = [record for record in caplog.records if record.name == "memory_layer.client"]
    assert line.getMessage() in {f"trying again in {n} s: RATE_LIMITED: what happened" for n in (1, 2)}


def test_an_unreasonable_retry_after_is_handed_to_the_caller(server: Server, use: Callable[..., Any]) -> None:
    server.answers = [error(503, "FROZEN", retryable=True, Retry_After="3600")]
    with pytest.raises(MemoryLayerClientError) as caught:
        use("remember", "x", owner="ann")
    assert caught.value.retry_after == 3600
    assert len(server.seen) == 1


def test_nobody_there() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
        with MemoryClient(url, retries=0) as memory, pytest.raises(MemoryLayerClientError) as caught:
            memory.get("n1")
    assert caught.value.code == "UNREACHABLE"
    assert url in caught.value.message


def test_health_is_an_answer_even_when_unhealthy(server: Server, use: Callable[..., Any]) -> None:
    server.answers = [Answer(503, {"status": "unavailable", "checks": {}})]
    assert use("health")["status"] == "unavailable"
    assert len(server.seen) == 1


def test_the_environment_names_the_server(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEMORY_URL", server.url + "/")
    monkeypatch.setenv("MEMORY_TOKEN", "from-env\n")
    # A proxy for the world outside is not asked about this machine.
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    server.answers = [Answer(200, {"memoryNodeId": "n1"})]
    with MemoryClient() as memory:
        memory.get("n1")
    assert server.seen[0].headers["authorization"] == "Bearer from-env"


def stored(data: bytes) -> dict[str, Any]:
    return {
        "artifactId": "a1",
        "sha256": hashlib.sha256(data).hexdigest(),
        "sizeBytes": len(data),
        "name": "../../x.bin",
    }


def test_upload_streams_a_file_with_its_hash(server: Server, use: Callable[..., Any], tmp_path: Path) -> None:
    data = bytes(range(256)) * 12_000
    file = tmp_path / "report.pdf"
    file.write_bytes(data)
    server.answers = [error(503, "OBJECT_STORE_UNAVAILABLE", retryable=True), Answer(201, stored(data))]
    assert use("upload", file, node="n1")["artifactId"] == "a1"
    assert [seen.body == data for seen in server.seen] == [True, True]  # the repeat starts from the beginning
    sent = server.seen[1]
    assert (sent.method, sent.path) == ("PUT", "/v1/memory/artifacts")
    assert sent.query == {"memoryNodeId": ["n1"], "name": ["report.pdf"]}
    assert sent.headers["content-type"] == "application/pdf"
    assert sent.headers["x-content-sha256"] == hashlib.sha256(data).hexdigest()


def test_an_upload_says_what_it_came_with(server: Server, use: Callable[..., Any]) -> None:
    server.answers = [Answer(201, stored(b"abc"))]
    use("upload", io.BytesIO(b"abc"), manifest_signature_id="sig-1", retain_until="2030-01-01T00:00:00Z")
    (sent,) = server.seen
    assert sent.headers["x-manifest-signature-id"] == "sig-1"
    assert sent.headers["x-retain-until"] == "2030-01-01T00:00:00Z"


def test_a_link_is_given_and_not_followed(server: Server, use: Callable[..., Any]) -> None:
    elsewhere = "https://s3.example.com/bucket/key?X-Amz-Signature=1"
    server.answers = [
        error(503, "OBJECT_STORE_UNAVAILABLE", retryable=True),
        Answer(302, b"", {"Location": elsewhere}),
    ]
    assert use("link", "a/1") == elsewhere
    assert [(seen.method, seen.path, seen.query) for seen in server.seen] == [
        ("GET", "/v1/memory/artifacts/a%2F1/content", {"link": ["true"]})
    ] * 2
    for answer in (Answer(206, b"x"), error(416, "RANGE_NOT_SATISFIABLE"), Answer(200, b"")):
        server.answers = [answer]
        assert use("link", "a1") is None  # a directory has none: the bytes come, one of them at most
        assert server.seen[-1].headers["range"] == "bytes=0-0"
    server.answers = [error(403, "FORBIDDEN")]
    with pytest.raises(MemoryLayerClientError, match="FORBIDDEN"):
        use("link", "a1")


class Pipe(io.RawIOBase):
    """Readable once, as standard input is."""

    def __init__(self, data: bytes) -> None:
        self.inner = io.BytesIO(data)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        return self.inner.readinto(buffer)


def test_upload_from_a_pipe_is_checked_afterwards(server: Server, use: Callable[..., Any]) -> None:
    server.answers = [Answer(201, stored(b"abc"))]
    assert use("upload", Pipe(b"abc"))["artifactId"] == "a1"
    assert "x-content-sha256" not in server.seen[0].headers
    server.answers = [Answer(201, stored(b"other"))]
    with pytest.raises(MemoryLayerClientError) as caught:
        use("upload", Pipe(b"abc"))
    assert caught.value.code == "CHECKSUM_MISMATCH"


def test_upload_from_a_pipe_is_not_repeated(server: Server, use: Callable[..., Any]) -> None:
    server.answers = [error(503, "OBJECT_STORE_UNAVAILABLE", retryable=True)]
    with pytest.raises(MemoryLayerClientError):
        use("upload", Pipe(b"abc"))
    assert len(server.seen) == 1


def test_download_checks_the_bytes_and_starts_over_when_cut(
    server: Server, use: Callable[..., Any], tmp_path: Path
) -> None:
    data = b"0123456789" * 50_000
    server.answers = [Answer(200, stored(data)), Answer(200, data, cut=1000), Answer(200, data)]
    about = use("download", "a1", tmp_path / "out.bin")
    assert (tmp_path / "out.bin").read_bytes() == data
    assert about["path"] == str(tmp_path / "out.bin")
    assert [seen.path for seen in server.seen][1:] == ["/v1/memory/artifacts/a1/content"] * 2
    assert [file.name for file in tmp_path.iterdir()] == ["out.bin"]


def test_a_damaged_download_leaves_nothing(server: Server, use: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "out.bin").write_bytes(b"before")
    server.answers = [Answer(200, stored(b"right")), Answer(200, b"wrong")]
    with pytest.raises(MemoryLayerClientError) as caught:
        use("download", "a1", tmp_path / "out.bin")
    assert caught.value.code == "CHECKSUM_MISMATCH"
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [("out.bin", b"before")]


def test_a_stored_name_cannot_leave_the_folder(server: Server, use: Callable[..., Any], tmp_path: Path) -> None:
    server.answers = [Answer(200, stored(b"data")), Answer(200, b"data")]
    inner = tmp_path / "a" / "b"
    inner.mkdir(parents=True)
    use("download", "a1", inner)
    assert (inner / "x.bin").read_bytes() == b"data"


@pytest.mark.parametrize("vector", [[0.5, 1], (0.5, 1.0), array.array("f", [0.5, 1.0]), array.array("d", [0.5, 1.0])])
def test_vectors_in_every_form(vector: object) -> None:
    expected = base64.b64encode(b"\x00\x00\x00?\x00\x00\x80?").decode()
    assert encode_vector(vector) == expected
    assert encode_embedding(vector, "m") == {"model": "m", "dimension": 2, "vector": expected}
    assert encode_vector(base64.b64decode(expected)) == expected
    assert encode_vector(expected) == expected


def test_numpy_vectors() -> None:
    numpy = pytest.importorskip("numpy")
    values = [0.1, -3.0, 2.5]
    assert encode_vector(numpy.array(values, dtype="f4")) == encode_vector(values)
    assert encode_vector(numpy.array(values, dtype="f8")) == encode_vector(values)


def test_a_vector_that_is_none() -> None:
    with pytest.raises(TypeError, match="flat sequence"):
        encode_vector([[1.0], [2.0]])
    with pytest.raises(TypeError, match="flat sequence"):
        encode_vector(3)
    with pytest.raises(ValueError, match="which model"):
        encode_embedding([1.0], None)


def test_values_that_json_lacks_are_refused_here(server: Server, use: Callable[..., Any]) -> None:
    for value in (float("nan"), "\ud800"):
        with pytest.raises(ValueError):  # noqa: PT011 - two kinds of it
            use("remember", "x", owner="ann", metadata={"k": value})
    assert server.seen == []


def test_retry_after_as_a_date() -> None:
    assert parse_retry_after("12") == 12
    assert parse_retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == 0
    assert parse_retry_after("soon") is None
    assert parse_retry_after(None) is None
