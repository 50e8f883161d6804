"""schemathesis asks what docs/openapi.yaml describes, and checks that the answers are as it says."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml
from _server import INFERENCE, TOKEN

NAMES = ["digits", "sentences", "reranker"]
EMBEDDERS = ("embeddings", "embed", "embed_all", "similarity")  # ends of paths that "sentences" answers
RERANKERS = ("predict", "rerank")
USUAL = ("400", "404", "406", "413", "415")
STATUSES = {"Hugging Face": (*USUAL, "422", "424")}  # by tag
CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
    "negative_data_rejection",  # what the file does not allow gets no 200
)
# Operations that do what others do, by another path; other tests ask these.
SAME = ("predictVersion", "createEmbeddingToo", "rerankToo", "inferByPath")
# Headers that are not described are no fault. Two of the refusals are not among those that schemathesis expects.
CONFIG = """
[generation]
allow-extra-parameters = false

[checks.negative_data_rejection]
expected-statuses = [400, 404, 406, 413, 415, 422, 424]
"""


def as_served(described: Any) -> Any:
    """Return the description of what is asked here: with the models that run, and every status that may come."""
    paths = described["paths"]
    described["paths"] = {path: item for path, item in paths.items() if _operation(item) not in SAME}
    for path, item in described["paths"].items():
        end = path.rpartition("/")[2]
        names = ["sentences"] if end in EMBEDDERS else ["reranker"] if end in RERANKERS else NAMES
        values = {"name": names, "model": names, "version": ["1.0"]}
        item["parameters"] = [_of_values(parameter, values) for parameter in item["parameters"]]
        for method in {"get", "post"} & item.keys():
            responses, (tag,) = item[method]["responses"], item[method]["tags"]
            refused = responses.pop("default")  # a status that is not listed now fails
            responses.update(dict.fromkeys(STATUSES.get(tag, USUAL), refused))
    return described


def _operation(item: Any) -> str:
    return str(item.get("post", item.get("get"))["operationId"])


def _of_values(parameter: Any, values: dict[str, list[str]]) -> Any:
    name = parameter["$ref"].rpartition("/")[2]
    if name not in values:
        return parameter
    return {"name": name, "in": "path", "required": True, "schema": {"enum": values[name]}}


described = as_served(yaml.safe_load(Path("docs/openapi.yaml").read_text(encoding="utf-8")))
with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / "openapi.yaml"
    path.write_text(yaml.safe_dump(described), encoding="utf-8")
    (Path(folder) / "schemathesis.toml").write_text(CONFIG, encoding="utf-8")
    command = [str(Path(sys.executable).parent / "schemathesis"), "run", str(path), "--url", INFERENCE]
    options = ["--checks", ",".join(CHECKS), "--phases", "examples,coverage,fuzzing", "--max-examples", "15"]
    more = ["--header", f"Authorization: Bearer {TOKEN}", "--seed", "1", "--no-color"]
    done = subprocess.run([*command, *options, *more], cwd=folder, check=False)
sys.exit(done.returncode)
