"""/openapi.json, and /docs: one page that shows it, without anything from elsewhere."""

from __future__ import annotations

from functools import cache
from importlib import resources

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from memory_layer.api.openapi import document


def routes() -> list[BaseRoute]:
    return [
        Route("/openapi.json", openapi, methods=["GET"]),
        Route("/docs", page, methods=["GET"]),
        Route("/", page, methods=["GET"]),
    ]


async def openapi(_: Request) -> Response:
    return Response(_spec(), 200, media_type="application/json")


async def page(_: Request) -> Response:
    html = (resources.files(__package__) / "docs.html").read_bytes()
    policy = (
        "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; base-uri 'none'"
    )
    return Response(html, 200, {"Content-Security-Policy": policy}, "text/html; charset=utf-8")


@cache
def _spec() -> bytes:
    return msgspec.json.encode(document())
