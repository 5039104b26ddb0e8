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

Schema = dict[str, Any]

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
_ENCODED = "percent-encoded, decoded once; the session `batch` is %62atch"
_TEXT = {"type": "string"}
_TIME = {"type": "string", "format": "date-time"}
_OBJECT = {"type": "object"}
_ERROR: Schema = {
    "type": "object",
    "required": ["detail", "error_code", "errors"],
    "properties": {
        "detail": _TEXT,
        "error_code": {"type": "string", "pattern": "^[A-Z][A-Z0-9_]*$"},
        "errors": {
            "type": "array",
            "maxItems": 100,
            "items": {
                "type": "object",
                "required": ["field", "message"],
                "properties": {"field": _TEXT, "message": _TEXT},
            },
        },
    },
}
_ACCEPTED: Schema = {
    "type": "object",
    "required": ["status", "count", "timestamp"],
    "properties": {
        "status": {"enum": ["accepted", "committed", "dead_lettered"]},
        "count": {"type": "integer", "minimum": 1},
        "dead_lettered": {"type": "integer", "minimum": 1},
        "timestamp": _TIME,
    },
}


def document(policy: Policy) -> bytes:
    _, schemas = msgspec.json.schema_components(
        [kind.record for kind in KINDS], ref_template="#/components/schemas/{name}"
    )
    for kind in KINDS:
        _describe(kind, schemas[kind.record.__name__], policy)
    after = _query("after", {"type": "number"})
    paths: Schema = {
        **{kind.path: {"post": _batch(kind, policy.max_records)} for kind in KINDS},
        "/api/v1/persistence/flush": {
            "post": _operation(
                "Write everything accepted before this call, then answer",
                {200: ("Everything is written", _json(_OBJECT))},
                (400, 401, 403, 405, 503),
                [_timeout()],
            )
        },
        **_reading(policy),
        "/api/v1/persistence/stats": _get("Buffer, flush and lifetime figures", 401, 403, 405, 503),
        "/openapi.json": _get("This document", 401, 403, 405),
        "/": _get("Liveness; touches nothing else", 403, 405),
        "/health": _get("Detailed health", 403, 405, unhealthy=True),
        "/ready": _get("May a load balancer send traffic here", 403, 405, unhealthy=True),
        "/metrics": _get("Prometheus text format", 401, 403, 405, content={"text/plain": {"schema": _TEXT}}),
        "/dashboard": _get("A page for people; it asks for the token itself", 403, 405, content=_HTML),
        "/docs": _get(
            "This document for people, to be tried out; the page asks for the token itself", 403, 405, content=_HTML
        ),
        "/dashboard/history": _get(
            "What the page shows: the last ten minutes of the node", 400, 401, 403, 405, parameters=[after]
        ),
    }
    return orjson.dumps(
        {
            "openapi": "3.1.0",
            "info": {"title": "Persistence Service", "version": VERSION, "license": {"name": "MIT"}},
            "paths": paths,
            "components": {
                "schemas": {**schemas, "Error": _ERROR, "Accepted": _ACCEPTED},
                "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}},
            },
        }
    )


def _describe(kind: Kind, schema: Schema, policy: Policy) -> None:
    """Adds what msgspec does not know of a kind's fields."""
    schema["additionalProperties"] = policy.unknown_fields != "reject"
    properties: dict[str, Schema] = schema["properties"]
    for name, field in properties.items():
        properties[name] = _flat(field)
        field.pop("default", None)  # null means the default too
    for name in kind.fields_of(msgspec.inspect.RawType):
        properties[name] = {"type": "object", "description": "at most 64 KiB and 4096 values, nested at most 20 deep"}
    for name in kind.fields_of(msgspec.inspect.DateTimeType):
        # msgspec leaves the format out where a time may come without an offset.
        zone = f"ISO 8601; without an offset it is read in {policy.time_zone}"
        properties[name] = {**_TIME, "description": zone}
    for name in kind.rounded:
        properties[name] = {**properties[name], "type": "number"}
    for name in kind.as_text:
        properties[name] = {**properties[name], "type": ["string", "object"]}
    if kind.name in policy.statuses:
        properties["status"] = {"enum": list(policy.statuses[kind.name])}
    for name in properties.keys() - schema["required"]:
        types = properties[name]["type"]
        properties[name]["type"] = [*([types] if isinstance(types, str) else types), "null"]


def _flat(schema: Schema) -> Schema:
    """A choice between something and null as the former: every optional field takes null."""
    choices = schema.pop("anyOf", None)
    if choices is None:
        return schema
    some, null = choices
    if null != {"type": "null"}:
        raise TypeError(f"a choice of {choices} has no type of its own")
    return {**some, **schema}


def _batch(kind: Kind, max_records: int) -> Schema:
    items = {"$ref": f"#/components/schemas/{kind.record.__name__}"}
    records = {"type": "array", "minItems": 1, "maxItems": max_records, "items": items}
    body = {
        "type": "object",
        "required": [kind.name],
        "properties": {kind.name: records},
        "additionalProperties": False,
    }
    accepted = _json({"$ref": "#/components/schemas/Accepted"})
    committed = "ack=committed: the records are in the database, but for those dead-lettered"
    operation = _operation(
        f"Accept 1 to {max_records} {kind.name}",
        {202: ("The records are in the journal", accepted), 200: (committed, accepted)},
        (400, 401, 403, 405, 408, 413, 415, 422, 503),
        [_query("ack", {"enum": ["journaled", "committed"]}), _timeout()],
    )
    return {**operation, "requestBody": {"required": True, "content": _json(body)}}


def _reading(policy: Policy) -> Schema:
    """The read side's paths."""
    names = {"type": "string", "description": "one or several, separated by commas", "pattern": _listed("[^,]+")}
    own_schemas = {"updated_after": _TIME, "updated_before": _TIME, "batch_id": _TEXT, "fields": names}
    found: Schema = {}
    for path, summary, own, most in (
        (PREFIX, "Sessions, newest updated_at first", ("updated_after", "updated_before"), 200),
        (SESSION, "A session, and the progress of its tasks", (), 0),
        (TASKS, "Tasks of a session, in the order of task_id; as a stream, all of them", ("batch_id", "fields"), 1000),
        (TASK, "A task", (), 0),
    ):
        ids = [name for name in ("session_id", "task_id") if f"{{{name}}}" in path]
        parameters = [
            {"name": name, "in": "path", "required": True, "description": _ENCODED, "schema": _TEXT} for name in ids
        ]
        parameters += [_query("fresh", {"enum": ["flushed"]}), _timeout()]
        if most:
            statuses = policy.statuses.get("sessions" if path == PREFIX else "tasks")
            listed = {**names, "pattern": _listed("|".join(map(re.escape, statuses)))} if statuses else names
            parameters += [
                _query("status", listed),
                *(_query(name, own_schemas[name]) for name in own),
                _query("limit", {"type": "integer", "minimum": 1, "maximum": most}),
                _query("cursor", {"type": "string", "description": "`next` of the page before"}),
            ]
        stream = {NDJSON_TYPE: {"schema": _TEXT}} if path == TASKS else {}
        answer = (summary, {**_json(_OBJECT), **stream})
        found[path] = {"get": _operation(summary, {200: answer}, (400, 401, 403, 404, 405, 413, 503), parameters)}
    return found


def _get(
    summary: str,
    *errors: int,
    content: Schema | None = None,
    parameters: list[Schema] | None = None,
    unhealthy: bool = False,
) -> Schema:
    answers = {200: (summary, content or _json(_OBJECT))}
    if unhealthy:
        answers[503] = ("No records are accepted", _json(_OBJECT))
    return {"get": _operation(summary, answers, errors, parameters)}


def _operation(
    summary: str,
    answers: dict[int, tuple[str, Schema]],
    errors: tuple[int, ...],
    parameters: list[Schema] | None = None,
) -> Schema:
    """Args: answers: description and content by status; errors: statuses of the error document. One that may be 401
    wants the token."""
    responses = {str(status): {"description": text, "content": content} for status, (text, content) in answers.items()}
    error = _json({"$ref": "#/components/schemas/Error"})
    responses |= {str(status): {"description": _MEANING[status], "content": error} for status in errors}
    operation: Schema = {"summary": summary, "responses": responses}
    if 401 in errors:
        operation["security"] = [{"bearer": []}, {}]
    if parameters:
        operation["parameters"] = parameters
    return operation


def _json(schema: Schema) -> Schema:
    return {"application/json": {"schema": schema}}


_HTML: Schema = {"text/html": {"schema": _TEXT}}


def _query(name: str, schema: Schema) -> Schema:
    return {"name": name, "in": "query", "schema": schema}


def _timeout() -> Schema:
    return _query("timeout", {"type": "number", "minimum": 0, "maximum": 60})


def _listed(one: str) -> str:
    return f"^({one})(,({one})){{0,63}}$"
