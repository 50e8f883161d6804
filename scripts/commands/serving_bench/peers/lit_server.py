"""The LitServe that lit.py starts, as its documentation shows it: decode, batch, run, answer.

LitServe reads annotations as they are, so this file does not postpone them.
"""

import base64
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import litserve
import torch
from fastapi import Request

from serving_bench.peers import plain


class Api(litserve.LitAPI):  # type: ignore[misc, unused-ignore]
    """The network of the job."""

    def __init__(self, job: dict[str, Any]) -> None:
        super().__init__(max_batch_size=job["batch_size"], batch_timeout=job["delay_s"])
        self.job = job

    def setup(self, device: str) -> None:
        self.network = plain.load(self.job, device)

    def decode_request(self, request: Request) -> Any:
        return self.network.decode(base64.b64decode(request["body"]))  # JSON is parsed by now

    def batch(self, inputs: Sequence[Any]) -> Sequence[Any]:
        return inputs

    def predict(self, x: Any) -> Any:
        return self.network.run(x if self.job["batch_size"] > 1 else [x])

    def unbatch(self, output: Any) -> Any:
        return output

    def encode_response(self, output: Any) -> Any:
        return output if self.job["batch_size"] > 1 else output[0]


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    accelerator = "cuda" if torch.cuda.is_available() else "cpu"
    server = litserve.LitServer(Api(job), accelerator=accelerator, workers_per_device=job["workers"], timeout=60)
    server.run(host="127.0.0.1", port=job["port"], generate_client_file=False, log_level="warning")


if __name__ == "__main__":
    main()
