"""docs/openapi.yaml has every path that the adapters answer, and its parts fit together."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from handlers.protocol.adapters import openai, rerank, tei
from handlers.protocol.open_inference import paths as open_inference

BEHIND = "/predictions/{name}/{version}/"
TEXT = (Path(__file__).parents[2] / "docs" / "openapi.yaml").read_text(encoding="utf-8")
DESCRIBED = yaml.safe_load(TEXT)
OF_MODEL = ["/".join(["v2/models/{model}", *rest]) for rest in open_inference.MODEL]
ANSWERED = {
    "post": [*openai.PATHS, *rerank.PATHS, *tei.READERS, "v2/models/{model}/infer"],
    "get": [*tei.ASKED, *open_inference.SERVER, *(path for path in OF_MODEL if not path.endswith("infer"))],
}


@pytest.mark.parametrize(("method", "path"), [(method, path) for method in ANSWERED for path in ANSWERED[method]])
def test_a_path_that_is_answered_is_described(method: str, path: str) -> None:
    assert list(DESCRIBED["paths"][BEHIND + path].keys() & {"get", "post"}) == [method]


def test_no_other_path_is_described() -> None:
    known = {BEHIND + path for paths in ANSWERED.values() for path in paths}
    doors = {"/predictions/{name}", "/predictions/{name}/{version}", "/v1/models/{name}:predict"}
    assert DESCRIBED["paths"].keys() == known | doors | {"/v2/models/{name}/infer"}


def test_operations_have_ids_of_their_own_and_known_tags() -> None:
    operations = [item[method] for item in DESCRIBED["paths"].values() for method in item.keys() & {"get", "post"}]
    ids = [operation["operationId"] for operation in operations]
    assert len(set(ids)) == len(ids)
    assert {tag for operation in operations for tag in operation["tags"]} == {
        tag["name"] for tag in DESCRIBED["tags"]
    }


def test_every_part_is_used_and_every_used_part_is_there() -> None:
    used = set(re.findall(r'\$ref: "#/components/(\w+/\w+)"', TEXT))
    kinds = {kind: parts for kind, parts in DESCRIBED["components"].items() if kind != "securitySchemes"}
    assert used == {f"{kind}/{name}" for kind, parts in kinds.items() for name in parts}


def test_objects_of_a_protocol_say_whether_they_may_hold_more() -> None:
    """A request with an unknown field is refused, so its description must not allow one."""
    open_ones = {"HuggingFaceRequest", "Options", "InferRequest"}  # the model's options, whose names differ
    for name, schema in DESCRIBED["components"]["schemas"].items():
        if name.endswith("Request") and name not in open_ones:
            assert all(part.get("additionalProperties") is False for part in objects(schema)), name


def objects(schema: Any) -> Iterator[Any]:
    """The schemas of objects within a schema."""
    if isinstance(schema, dict):
        kind = schema.get("type")
        if "properties" in schema and (kind == "object" or isinstance(kind, list)):
            yield schema
        for part in schema.values():
            yield from objects(part)
    elif isinstance(schema, list):
        for part in schema:
            yield from objects(part)
