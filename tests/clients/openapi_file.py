"""schemathesis asks what docs/openapi.yaml describes, and checks that the answers are as it says."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import yaml
from _server import INFERENCE, TOKEN

SERVED = ["digits", "sentences"]
CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
)

described = yaml.safe_load(Path("docs/openapi.yaml").read_text(encoding="utf-8"))
described["components"]["parameters"]["name"]["schema"] = {"enum": SERVED}
for operation in (item["post"] for item in described["paths"].values()):
    operation["responses"] = {  # whatever is not listed fails
        **dict.fromkeys(("400", "404", "406", "413", "415"), operation["responses"]["default"]),
        "200": operation["responses"]["200"],
    }
with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / "openapi.yaml"
    path.write_text(yaml.safe_dump(described), encoding="utf-8")
    command = [str(Path(sys.executable).parent / "schemathesis"), "run", str(path), "--url", INFERENCE]
    options = ["--checks", ",".join(CHECKS), "--phases", "examples,coverage,fuzzing", "--max-examples", "30"]
    more = ["--header", f"Authorization: Bearer {TOKEN}", "--seed", "1", "--no-color"]
    done = subprocess.run([*command, *options, *more], cwd=folder, check=False)
sys.exit(done.returncode)
