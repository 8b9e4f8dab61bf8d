"""An OpenAPI document that a stand-in is held to: which operation a request is, whether it fits, and whether the answer does."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import unquote

import jsonschema
import yaml


class Refused(Exception):
    """A request that the service answers with an error."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status, self.message = status, message


@functools.cache
def _loaded(path: Path) -> dict[str, Any]:
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    loaded: dict[str, Any] = yaml.load(path.read_text("utf-8"), loader)  # noqa: S506 (a safe loader either way)
    return loaded


@functools.cache
def _validator(path: Path, name: str) -> Any:
    schema = {"$ref": f"#/components/schemas/{name}", "components": _loaded(path)["components"]}
    return jsonschema.Draft202012Validator(schema)


@dataclass(frozen=True, slots=True)
class Document:
    """``served``: the operations that the stand-in has; all others are unknown to it. ``error``: the schema of errors."""

    path: Path
    served: Collection[str]
    error: str

    def operation(self, method: str, path: str) -> tuple[dict[str, Any], dict[str, str]]:
        """The operation of a request line, and the parameters in its path. Raises Refused."""
        for template, methods in _loaded(self.path)["paths"].items():
            pattern = re.sub(r"\\\{(\w+)\\\}", r"(?P<\1>[^/]+)", re.escape(template))
            match = re.fullmatch(pattern, path)
            operation = methods.get(method.lower()) if match else None
            if match and operation and operation["operationId"] in self.served:
                return operation, {name: unquote(value) for name, value in match.groupdict().items()}
        raise Refused(404, f"no such operation: {method} {path}")

    def request(self, operation: dict[str, Any], raw: bytes, query: Mapping[str, list[str]]) -> dict[str, Any]:
        """The body, or the parameters of the query in the types that the document gives them. Raises Refused."""
        parameters = {p["name"]: p for p in operation["parameters"] if p["in"] == "query"}
        required = {name for name, p in parameters.items() if p.get("required")}
        if set(query) - set(parameters) or required - set(query):
            raise Refused(400, f"query parameters {sorted(query)}")
        if "requestBody" not in operation:
            return {name: _typed(parameters[name]["schema"], name, values) for name, values in query.items()}
        try:
            request = json.loads(raw, parse_constant=lambda name: _refuse(f"{name} is not JSON"))
        except ValueError:
            raise Refused(400, "the body is not JSON") from None
        problem = self._misfit(operation["requestBody"]["content"]["application/json"]["schema"]["$ref"], request)
        if problem is not None:
            raise Refused(400, problem)
        return request  # type: ignore[no-any-return]

    def problem(self, operation: dict[str, Any], status: int, found: Any) -> str | None:
        """What is wrong with an answer by the document."""
        responses = operation.get("responses") or {}
        answer = responses.get(str(status)) or responses.get(f"{status // 100}XX")
        if answer is None:
            # Any operation may fail in a way that is not listed with it, in the shape of all errors.
            return self._misfit(self.error, found) if status >= 400 else f"{status} is not among its answers"
        if "content" not in answer:
            return None if found is None else "its answer has no body"
        return self._misfit(answer["content"]["application/json"]["schema"]["$ref"], found)

    def _misfit(self, reference: str, value: Any) -> str | None:
        error = next(_validator(self.path, reference.rsplit("/", 1)[-1]).iter_errors(_shortened(value)), None)
        return None if error is None else f"{error.json_path}: {error.message[:200]}"


def _typed(schema: dict[str, Any], name: str, values: list[str]) -> Any:
    if schema.get("type") == "array":
        return values
    if len(values) != 1:
        raise Refused(400, f"{name} is given {len(values)} times")
    if schema.get("type") == "integer":
        if not re.fullmatch(r"-?[0-9]{1,18}", values[0]):
            raise Refused(400, f"{name} is no integer")
        return int(values[0])
    return values[0]


def _shortened(value: Any) -> Any:
    """The same with long lists of numbers cut, after a look at each: the schema's check of every number would take seconds."""
    if isinstance(value, dict):
        return {key: _shortened(one) for key, one in value.items()}
    if isinstance(value, list):
        if len(value) > 16 and all(type(one) in (int, float) for one in value):
            return value[:16]
        return [_shortened(one) for one in value]
    return value


def _refuse(message: str) -> NoReturn:
    raise Refused(400, message)
