"""SQS as moto plays it, over HTTP on loopback: real requests of boto3, queues in memory.

It proves the calls and their shapes. It does not prove what SQS alone does: several servers that answer differently, throttling, the
limit of messages in flight, permissions.
"""

from __future__ import annotations

import contextlib
import json
import logging
import uuid
from collections.abc import Iterator
from typing import Any

import boto3
from moto.server import ThreadedMotoServer

from tests.support.kms_server import REGION


class SqsServer:
    """One moto; its queues outlive a stop."""

    def __init__(self) -> None:
        self.port = 0
        self._server: ThreadedMotoServer | None = None

    def start(self) -> None:
        """At the port that it had before, if it ran before."""
        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        self._server = ThreadedMotoServer(ip_address="127.0.0.1", port=self.port, verbose=False)
        self._server.start()
        _, self.port = self._server.get_host_and_port()

    def stop(self) -> None:
        if self._server is not None:
            self._server.stop()
            self._server = None

    @property
    def running(self) -> bool:
        return self._server is not None

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def client(self) -> Any:
        """boto3 with the environment's credentials."""
        return boto3.client("sqs", region_name=REGION, endpoint_url=self.endpoint)

    def make(self, **attributes: str) -> str:
        """A queue of its own; its URL."""
        name = f"q-{uuid.uuid4().hex[:12]}"
        return str(self.client().create_queue(QueueName=name, Attributes=attributes)["QueueUrl"])

    def held(self, url: str) -> int:
        """How many messages nobody has deleted."""
        names = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]
        found = self.client().get_queue_attributes(QueueUrl=url, AttributeNames=names)["Attributes"]
        return sum(int(found[name]) for name in names)

    def put(self, url: str, body: str | dict[str, Any]) -> None:
        text = body if isinstance(body, str) else json.dumps(body)
        self.client().send_message(QueueUrl=url, MessageBody=text)


@contextlib.contextmanager
def running_sqs() -> Iterator[SqsServer]:
    server = SqsServer()
    server.start()
    try:
        yield server
    finally:
        server.stop()
