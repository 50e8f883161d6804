"""tritonclient.grpc finds no service: TorchServe has the Open Inference Protocol's under a package of its own."""

from __future__ import annotations

import tritonclient.grpc as triton
from _server import GRPC, TOKEN
from tritonclient.utils import InferenceServerException

with triton.InferenceServerClient(GRPC) as client:
    try:
        client.is_server_live(headers={"authorization": f"Bearer {TOKEN}"})
    except InferenceServerException as caught:
        error = caught
    else:
        raise AssertionError("there is a service; docs/clients/triton.md says that there is none")
assert "UNIMPLEMENTED" in str(error.status()), error
