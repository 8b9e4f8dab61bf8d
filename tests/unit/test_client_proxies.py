"""Proxies that the environment names: of no account for this machine, and named where they cannot be used."""

from __future__ import annotations

import pytest

from memory_layer.client import AsyncMemoryClient, MemoryClient, MemoryLayerClientError

SOCKS = ["socks4://127.0.0.1:1", "socks5://127.0.0.1:1", "socks5h://127.0.0.1:1", "what://127.0.0.1:1"]


@pytest.mark.parametrize("name", ["ALL_PROXY", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY"])
@pytest.mark.parametrize("proxy", SOCKS)
def test_this_machine_is_asked_directly(monkeypatch: pytest.MonkeyPatch, name: str, proxy: str) -> None:
    monkeypatch.setenv(name, proxy)
    for url in (
        "http://127.0.0.1:1",
        "http://localhost:1",
        "http://[::1]:1",
        "https://127.0.0.1:1",
        "http://127.9.9.9:1",
    ):
        with MemoryClient(url, "x"):
            pass
        AsyncMemoryClient(url, "x")


@pytest.mark.parametrize("proxy", ["socks4://127.0.0.1:1", "what://127.0.0.1:1"])
def test_one_that_cannot_be_used_is_named(monkeypatch: pytest.MonkeyPatch, proxy: str) -> None:
    monkeypatch.setenv("ALL_PROXY", proxy)
    for client in (MemoryClient, AsyncMemoryClient):
        with pytest.raises(MemoryLayerClientError, match="ALL_PROXY") as refused:
            client("http://memory.example.com", "x")
        assert refused.value.code == "INVALID_PROXY"
