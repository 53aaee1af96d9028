"""The documentation of a site's calls for programs, OpenAPI 3.1, made from their types."""

import re
from collections.abc import Sequence
from typing import Any

import msgspec
from msgspec import Struct

from common.web import Call

REFERENCE = "#/components/schemas/{name}"
PATH_PARAMETER = re.compile(r"{(\w+)}")


class Problem(Struct):
    """A request that was not met. detail: one line with the cause and, where there is one, the cure."""

    detail: str


def document(calls: Sequence[Call], title: str, version: str, meaning: str) -> dict[str, Any]:
    """The whole of it, as JSON types."""
    kinds = [Problem, *(one for call in calls for one in (call.body, call.gives) if one is not None)]
    schemas, components = msgspec.json.schema_components(kinds, ref_template=REFERENCE)
    of = {repr(kind): schema for kind, schema in zip(kinds, schemas, strict=True)}
    paths: dict[str, Any] = {}
    for call in calls:
        paths.setdefault(call.path, {})[call.method.lower()] = _operation(call, of)
    return {
        "openapi": "3.1.0",
        "info": {"title": title, "version": version, "description": meaning},
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
    }


def _operation(call: Call, schema_of: dict[str, Any]) -> dict[str, Any]:
    given = {"schema": schema_of[repr(call.gives)]} if call.gives is not None else {}
    problem = {"application/json": {"schema": schema_of[repr(Problem)]}}
    found: dict[str, Any] = {
        "summary": call.meaning,
        "operationId": f"{call.method.lower()}{re.sub(r'[^A-Za-z0-9]+', '_', call.path)}",
        "parameters": _parameters(call),
        "responses": {
            "200": {"description": "done", "content": dict.fromkeys(call.kind.split(", "), given)},
            "default": {"description": "refused", "content": problem},
        },
        "security": [{}] if call.public else [{}, {"token": []}],
    }
    if call.body is not None:
        content = {"application/json": {"schema": schema_of[repr(call.body)]}}
        found["requestBody"] = {"required": _is_required(call.body), "content": content}
    return found


def _is_required(kind: Any) -> bool:
    return any(one.required for one in msgspec.structs.fields(kind))


def _parameters(call: Call) -> list[dict[str, Any]]:
    """Of the path, and of the query."""
    found: list[dict[str, Any]] = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in PATH_PARAMETER.findall(call.path)
    ]
    for one in msgspec.structs.fields(call.query) if call.query is not None else ():
        [schema], _ = msgspec.json.schema_components([one.type], ref_template=REFERENCE)
        if one.default is not msgspec.NODEFAULT:
            schema = {**schema, "default": one.default}
        found.append({"name": one.name, "in": "query", "required": one.required, "schema": schema})
    return found
