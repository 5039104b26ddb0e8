"""OpenAPI 3.1 document, generated from the record types."""

from __future__ import annotations

import re
from typing import Any

import msgspec
import orjson

from shared import VERSION
from shared.reading import NDJSON_TYPE, PREFIX, SESSION, TASK, TASKS
from shared.records import KINDS, Kind
from shared.validation import Policy

_ERROR = {"$ref": "#/components/schemas/Error"}
_SECURED: list[dict[str, list[str]]] = [{"bearer": []}, {}]


def document(policy: Policy) -> bytes:
    types = [kind.record for kind in KINDS]
    _, components = msgspec.json.schema_components(types, ref_template="#/components/schemas/{name}")
    schemas: dict[str, Any] = dict(components)
    for kind in KINDS:
        schemas[kind.record.__name__]["additionalProperties"] = policy.unknown_fields != "reject"
        properties = schemas[kind.record.__name__]["properties"]
        _describe(kind, properties, policy)
        for name in properties.keys() - schemas[kind.record.__name__]["required"]:
            properties[name]["type"] = [*_types(properties[name]), "null"]
    schemas["Error"] = {
        "type": "object",
        "required": ["detail", "error_code", "errors"],
        "properties": {
            "detail": {"type": "string"},
            "error_code": {"type": "string", "pattern": "^[A-Z][A-Z0-9_]*$"},
            "errors": {
                "type": "array",
                "maxItems": 100,
                "items": {
                    "type": "object",
                    "required": ["field", "message"],
                    "properties": {"field": {"type": "string"}, "message": {"type": "string"}},
                },
            },
        },
    }
    schemas["Accepted"] = {
        "type": "object",
        "required": ["status", "count", "timestamp"],
        "properties": {
            "status": {"enum": ["accepted", "committed", "dead_lettered"]},
            "count": {"type": "integer", "minimum": 1},
            "dead_lettered": {"type": "integer", "minimum": 1},
            "timestamp": {"type": "string", "format": "date-time"},
        },
    }
    paths: dict[str, Any] = {
        kind.path: {"post": _batch(kind.name, kind.record.__name__, policy.max_records)} for kind in KINDS
    }
    paths["/api/v1/persistence/flush"] = {
        "post": {
            "summary": "Write everything accepted before this call, then answer",
            "security": _SECURED,
            "parameters": [_timeout()],
            "responses": {"200": _object("Everything is written"), **_errors(400, 401, 403, 405, 503)},
        }
    }
    paths |= _reading(policy)
    for path, summary, statuses in (
        ("/api/v1/persistence/stats", "Buffer, flush and lifetime figures", (401, 403, 405, 503)),
        ("/openapi.json", "This document", (401, 403, 405)),
        ("/", "Liveness; touches nothing else", (403, 405)),
    ):
        get: dict[str, Any] = {"summary": summary, "responses": {"200": _object(summary), **_errors(*statuses)}}
        if 401 in statuses:
            get["security"] = _SECURED
        paths[path] = {"get": get}
    for path, summary in (
        ("/health", "Detailed health"),
        ("/ready", "May a load balancer send traffic here"),
    ):
        responses = {"200": _object(summary), "503": _object("No records are accepted"), **_errors(403, 405)}
        paths[path] = {"get": {"summary": summary, "responses": responses}}
    paths["/metrics"] = {
        "get": {
            "summary": "Prometheus text format",
            "security": _SECURED,
            "responses": {"200": _text("Metrics", "text/plain"), **_errors(401, 403, 405)},
        }
    }
    paths["/dashboard"] = {
        "get": {
            "summary": "A page for people; it asks for the token itself",
            "responses": {"200": _text("The page", "text/html"), **_errors(403, 405)},
        }
    }
    paths["/docs"] = {
        "get": {
            "summary": "This document for people, to be tried out; the page asks for the token itself",
            "responses": {"200": _text("The page", "text/html"), **_errors(403, 405)},
        }
    }
    paths["/dashboard/history"] = {
        "get": {
            "summary": "What the page shows: the last ten minutes of the node",
            "security": _SECURED,
            "parameters": [{"name": "after", "in": "query", "schema": {"type": "number"}}],
            "responses": {"200": _object("The points, oldest first"), **_errors(400, 401, 403, 405)},
        }
    }
    return orjson.dumps(
        {
            "openapi": "3.1.0",
            "info": {"title": "Persistence Service", "version": VERSION, "license": {"name": "MIT"}},
            "paths": paths,
            "components": {
                "schemas": schemas,
                "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}},
            },
        }
    )


def _describe(kind: Kind, properties: dict[str, dict[str, Any]], policy: Policy) -> None:
    """What msgspec does not know of a kind's fields."""
    for name, schema in properties.items():
        properties[name] = _flat(schema)
        schema.pop("default", None)  # null means the default too
    for name in kind.fields_of(msgspec.inspect.RawType):
        properties[name] = {"type": "object", "description": "at most 64 KiB and 4096 values, nested at most 20 deep"}
    for name in kind.fields_of(msgspec.inspect.DateTimeType):
        # msgspec leaves the format out where a time may come without an offset.
        zone = f"ISO 8601; without an offset it is read in {policy.time_zone}"
        properties[name] = {"type": "string", "format": "date-time", "description": zone}
    for name in kind.rounded:
        properties[name] = {**properties[name], "type": "number"}
    for name in kind.as_text:
        properties[name] = {**properties[name], "type": ["string", "object"]}
    if kind.name in policy.statuses:
        properties["status"] = {"enum": list(policy.statuses[kind.name])}


def _batch(name: str, type_name: str, max_records: int) -> dict[str, Any]:
    records = {
        "type": "array",
        "minItems": 1,
        "maxItems": max_records,
        "items": {"$ref": f"#/components/schemas/{type_name}"},
    }
    body = {"type": "object", "required": [name], "properties": {name: records}, "additionalProperties": False}
    accepted = {"application/json": {"schema": {"$ref": "#/components/schemas/Accepted"}}}
    return {
        "summary": f"Accept 1 to {max_records} {name}",
        "security": _SECURED,
        "parameters": [
            {"name": "ack", "in": "query", "schema": {"enum": ["journaled", "committed"]}},
            _timeout(),
        ],
        "requestBody": {"required": True, "content": {"application/json": {"schema": body}}},
        "responses": {
            "202": {"description": "The records are in the journal", "content": accepted},
            "200": {
                "description": "ack=committed: the records are in the database, but for those dead-lettered",
                "content": accepted,
            },
            **_errors(400, 401, 403, 405, 408, 413, 415, 422, 503),
        },
    }


def _listed(one: str) -> str:
    return f"^({one})(,({one})){{0,63}}$"


def _reading(policy: Policy) -> dict[str, Any]:
    """The read side's paths."""
    names = {"type": "string", "description": "one or several, separated by commas", "pattern": _listed("[^,]+")}
    time = {"type": "string", "format": "date-time"}
    fresh = [_query("fresh", {"enum": ["flushed"]}), _timeout()]
    ids = {
        name: {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in ("session_id", "task_id")
    }
    own_schemas = {"updated_after": time, "updated_before": time, "batch_id": {"type": "string"}, "fields": names}
    found: dict[str, Any] = {}
    for path, summary, own, most in (
        (PREFIX, "Sessions, newest updated_at first", ("updated_after", "updated_before"), 200),
        (SESSION, "A session, and the progress of its tasks", (), 0),
        (TASKS, "Tasks of a session, in the order of task_id; as a stream, all of them", ("batch_id", "fields"), 1000),
        (TASK, "A task", (), 0),
    ):
        parameters = [one for name, one in ids.items() if f"{{{name}}}" in path] + fresh
        if most:
            statuses = policy.statuses.get("sessions" if path == PREFIX else "tasks")
            parameters += [
                _query(
                    "status", {**names, "pattern": _listed("|".join(map(re.escape, statuses)))} if statuses else names
                ),
                *(_query(name, own_schemas[name]) for name in own),
                _query("limit", {"type": "integer", "minimum": 1, "maximum": most}),
                _query("cursor", {"type": "string", "description": "`next` of the page before"}),
            ]
        answer = _object(summary)
        if path == TASKS:
            answer["content"][NDJSON_TYPE] = {"schema": {"type": "string"}}
        responses = {"200": answer, **_errors(400, 401, 403, 404, 405, 413, 503)}
        get = {"summary": summary, "security": _SECURED, "parameters": parameters, "responses": responses}
        found[path] = {"get": get}
    return found


def _query(name: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "in": "query", "schema": schema}


def _flat(schema: dict[str, Any]) -> dict[str, Any]:
    """A choice between something and null as the former: every optional field takes null."""
    choices = schema.pop("anyOf", None)
    if choices is None:
        return schema
    some, null = choices
    if null != {"type": "null"}:
        raise TypeError(f"a choice of {choices} has no type of its own")
    return {**some, **schema}


def _types(schema: dict[str, Any]) -> list[str]:
    types = schema["type"]
    return [types] if isinstance(types, str) else types


def _timeout() -> dict[str, Any]:
    return {"name": "timeout", "in": "query", "schema": {"type": "number", "minimum": 0, "maximum": 60}}


def _object(description: str) -> dict[str, Any]:
    return {"description": description, "content": {"application/json": {"schema": {"type": "object"}}}}


def _text(description: str, content_type: str) -> dict[str, Any]:
    return {"description": description, "content": {content_type: {"schema": {"type": "string"}}}}


def _errors(*statuses: int) -> dict[str, Any]:
    content = {"application/json": {"schema": _ERROR}}
    return {str(status): {"description": _MEANING[status], "content": content} for status in statuses}


_MEANING = {
    400: "Not JSON, wrong shape, body cut short, or a parameter unknown or out of range",
    401: "The token is missing",
    403: "The token is wrong, protected mode is on, or without a token Host or site is another",
    404: "There is no such record in the database, or reading is switched off",
    405: "Wrong method",
    408: "The request did not come in time",
    413: "The body is over service.max_body_bytes, or packed over 100 to 1",
    415: "Not JSON, or an unknown Content-Encoding",
    422: "A record is invalid; nothing of the request is stored",
    503: "Cannot accept or answer now; see Retry-After",
}
