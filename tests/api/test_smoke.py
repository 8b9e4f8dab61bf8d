from __future__ import annotations

import httpx2

from tests.support.product import Product


def test_a_node_goes_in_and_comes_out(product: Product, tenant: str) -> None:
    headers = {"Authorization": f"Bearer {product.issue(tenant=tenant)}"}
    with httpx2.Client(base_url=product.url, headers=headers) as http:
        made = http.post("/v1/memory/nodes", json={"owner": "ann", "content": "hello"})
        assert made.status_code == 201, made.text
        assert http.get(f"/v1/memory/nodes/{made.json()['memoryNodeId']}").json()["content"] == "hello"
