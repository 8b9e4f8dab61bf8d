"""/openapi.json, and /docs: one page that shows it, without anything from elsewhere."""

from __future__ import annotations

from functools import cache
from importlib import resources

import msgspec
from starlette.requests import Request
from starlette.routing import BaseRoute

from memory_layer.api.calls import Answer
from memory_layer.api.openapi import document
from memory_layer.api.replies import route


def routes() -> list[BaseRoute]:
    return [route("/openapi.json", openapi), route("/docs", page), route("/", page)]


async def openapi(_: Request) -> Answer:
    return Answer(200, _spec(), {"Content-Type": "application/json"})


async def page(_: Request) -> Answer:
    html = (resources.files(__package__) / "docs.html").read_bytes()
    policy = (
        "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; base-uri 'none'"
    )
    return Answer(200, html, {"Content-Type": "text/html; charset=utf-8", "Content-Security-Policy": policy})


@cache
def _spec() -> bytes:
    return msgspec.json.encode(document())
