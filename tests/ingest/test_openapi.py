from __future__ import annotations

import re
from typing import Any

import msgspec
import orjson
import pytest

from ingest import openapi
from shared import VERSION
from shared.records import KINDS
from shared.validation import Policy

POLICY = Policy({"tasks": ("open", "done")}, time_zone="Asia/Shanghai", max_records=7)
DOCUMENT: Any = orjson.loads(openapi.document(POLICY))
OPEN = {"/", "/health", "/ready", "/dashboard", "/docs"}


def operations() -> list[tuple[str, str, dict[str, Any]]]:
    return [(path, method, operation) for path, item in DOCUMENT["paths"].items() for method, operation in item.items()]


def references(node: Any) -> set[str]:
    if isinstance(node, dict):
        found = {node["$ref"]} if "$ref" in node else set()
        return found.union(*map(references, node.values()))
    return set().union(*map(references, node)) if isinstance(node, list) else set()


def test_it_is_openapi_3_1_of_this_version() -> None:
    assert DOCUMENT["openapi"].startswith("3.1.")
    assert DOCUMENT["info"]["version"] == VERSION


def test_it_has_every_path_of_the_contract_with_its_method() -> None:
    assert {(path, method) for path, method, _ in operations()} == {
        ("/", "get"),
        ("/health", "get"),
        ("/ready", "get"),
        ("/metrics", "get"),
        ("/dashboard", "get"),
        ("/docs", "get"),
        ("/dashboard/history", "get"),
        ("/openapi.json", "get"),
        ("/api/v1/persistence/sessions/batch", "post"),
        ("/api/v1/persistence/tasks/batch", "post"),
        ("/api/v1/persistence/flush", "post"),
        ("/api/v1/persistence/stats", "get"),
        ("/api/v1/persistence/sessions", "get"),
        ("/api/v1/persistence/sessions/{session_id}", "get"),
        ("/api/v1/persistence/sessions/{session_id}/tasks", "get"),
        ("/api/v1/persistence/sessions/{session_id}/tasks/{task_id}", "get"),
    }


def test_every_reference_resolves() -> None:
    found = references(DOCUMENT)
    assert found
    for reference in found:
        node = DOCUMENT
        for part in reference.removeprefix("#/").split("/"):
            node = node[part]


@pytest.mark.parametrize("kind", KINDS)
def test_the_schema_of_a_record_has_its_fields_and_what_is_required(kind: Any) -> None:
    schema = DOCUMENT["components"]["schemas"][kind.record.__name__]
    fields = msgspec.structs.fields(kind.record)
    assert list(schema["properties"]) == [field.name for field in fields]
    assert schema["required"] == [field.name for field in fields if field.required]
    assert schema["additionalProperties"] is True


def test_limits_stand_in_the_schema() -> None:
    task = DOCUMENT["components"]["schemas"]["Task"]["properties"]
    assert (task["task_id"]["minLength"], task["task_id"]["maxLength"]) == (1, 64)
    assert (task["row_index"]["minimum"], task["row_index"]["maximum"]) == (0, 2147483647)
    assert task["metadata"]["type"] == ["object", "null"]
    assert task["context"]["type"] == ["string", "object", "null"]
    assert task["duration_ms"]["type"] == ["number", "null"]
    assert task["session_id"]["type"] == "string"


def test_the_configuration_stands_in_the_schema() -> None:
    task = DOCUMENT["components"]["schemas"]["Task"]
    assert task["properties"]["status"] == {"enum": ["open", "done"]}
    assert "Asia/Shanghai" in task["properties"]["start_time"]["description"]
    rejecting = orjson.loads(openapi.document(Policy(unknown_fields="reject")))
    assert rejecting["components"]["schemas"]["Task"]["additionalProperties"] is False
    for kind in KINDS:
        body = DOCUMENT["paths"][kind.path]["post"]["requestBody"]["content"]["application/json"]["schema"]
        records = body["properties"][kind.name]
        assert body["required"] == [kind.name]
        assert (records["minItems"], records["maxItems"]) == (1, 7)


def test_a_batch_names_every_status_of_the_error_table() -> None:
    for kind in KINDS:
        responses = DOCUMENT["paths"][kind.path]["post"]["responses"]
        assert responses.keys() >= {"200", "202", "400", "401", "403", "405", "413", "415", "422", "503"}


def test_every_error_is_the_error_document() -> None:
    for _, _, operation in operations():
        for status, response in operation["responses"].items():
            assert response["description"]
            if re.fullmatch(r"4..", status):
                schema = response["content"]["application/json"]["schema"]
                assert schema == {"$ref": "#/components/schemas/Error"}
    assert DOCUMENT["components"]["schemas"]["Error"]["required"] == ["detail", "error_code", "errors"]


def test_the_token_is_asked_for_everywhere_but_on_the_open_paths() -> None:
    for path, _, operation in operations():
        assert ("401" in operation["responses"]) == (path not in OPEN)
        assert ("security" in operation) == (path not in OPEN)
