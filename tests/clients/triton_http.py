"""tritonclient.http, by both base addresses: the server's own, and the one behind /predictions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.http as triton
from _server import BEARER, INFERENCE, SIZE
from tritonclient.utils import InferenceServerException

SAMPLES = Path("archive/digits/samples")
HOST = INFERENCE.removeprefix("http://")
TEXTS = np.array(["Where is my parcel?", "My order has not arrived."], dtype=np.object_)


def tensor(name: str, array: Any, kind: str, binary: bool = True) -> triton.InferInput:
    made = triton.InferInput(name, list(array.shape), kind)
    made.set_data_from_numpy(array, binary_data=binary)
    return made


def refused(work: Any, status: str) -> str:
    try:
        work()
    except InferenceServerException as caught:
        error = caught
    else:
        raise AssertionError("it was answered")
    assert error.status() == status, error
    return str(error.message())


def ask(client: triton.InferenceServerClient) -> None:
    """Inference is the same by both addresses."""

    def infer(model: str, tensors: list[triton.InferInput], **more: Any) -> Any:
        return client.infer(model, tensors, headers=dict(BEARER), **more)  # it writes into the headers

    first = infer("sentences", [tensor("text", TEXTS, "BYTES")], request_id="7")
    assert (first.as_numpy("embeddings").shape, first.get_response()["id"]) == ((2, SIZE), "7")
    in_json = [triton.InferRequestedOutput("embeddings", binary_data=False)]
    for tensors, more in (
        ([tensor("text", TEXTS.reshape(2, 1), "BYTES", binary=False)], {"outputs": in_json}),
        ([tensor("text", TEXTS, "BYTES")], {"outputs": in_json}),
        ([tensor("text", TEXTS, "BYTES")], {"parameters": {"truncate": True}}),
        ([tensor("text", TEXTS, "BYTES")], {"request_compression_algorithm": "gzip"}),
        ([tensor("text", TEXTS, "BYTES")], {"request_compression_algorithm": "deflate"}),
        ([tensor("text", TEXTS, "BYTES")], {"response_compression_algorithm": "gzip"}),
    ):
        np.testing.assert_allclose(
            infer("sentences", tensors, **more).as_numpy("embeddings"), first.as_numpy("embeddings"), atol=1e-5
        )
    half = infer("sentences", [tensor("text", TEXTS, "BYTES")], parameters={"dtype": "float16"})
    assert half.as_numpy("embeddings").dtype == np.float16

    files = np.array([(SAMPLES / name).read_bytes() for name in ("seven.png", "three.png")], dtype=np.object_)
    wanted = [triton.InferRequestedOutput("labels"), triton.InferRequestedOutput("scores", binary_data=False)]
    read = infer("digits", [tensor("image", files, "BYTES")], outputs=wanted, parameters={"top_k": 1})
    assert read.as_numpy("labels").tolist() == [[b"7"], [b"3"]]
    assert (read.as_numpy("scores") > 0.5).all()
    assert read.as_numpy("indices") is None
    for array, kind in (
        (np.zeros((2, 32, 32, 3), np.uint8), "UINT8"),
        (np.zeros((2, 3, 32, 32), np.float16), "FP16"),
        (np.zeros((2, 3, 32, 32), np.float32), "FP32"),
    ):
        assert infer("digits", [tensor("pixels", array, kind)]).as_numpy("indices").shape == (2, 5)

    one = [tensor("text", TEXTS[:1], "BYTES")]
    assert "sequence" in refused(lambda: infer("sentences", one, sequence_id=5, sequence_start=True), "400")
    assert "'top_q'" in refused(lambda: infer("sentences", one, parameters={"top_q": 1}), "400")
    assert "tokens" in refused(
        lambda: infer("sentences", [tensor("text", np.array(["word " * 600], np.object_), "BYTES")]), "400"
    )
    shared = triton.InferInput("text", [1], "BYTES")
    shared.set_shared_memory("region", 8)
    assert "shared memory" in refused(lambda: infer("sentences", [shared]), "400")


with triton.InferenceServerClient(HOST) as client:
    ask(client)

for model in ("sentences", "digits"):
    with triton.InferenceServerClient(f"{HOST}/predictions/{model}/1.0") as client:
        assert client.is_server_live(headers=BEARER)
        assert client.is_server_ready(headers=BEARER)
        assert client.is_model_ready(model, headers=BEARER)
        assert client.get_server_metadata(headers=BEARER)["extensions"] == ["binary_tensor_data"]
        metadata = client.get_model_metadata(model, headers=BEARER)
        assert metadata["name"] == model
        assert metadata["versions"] == ["1.0"]
        assert client.get_model_metadata(model, "1.0", headers=BEARER) == metadata
        array = TEXTS if model == "sentences" else np.array([(SAMPLES / "seven.png").read_bytes()], np.object_)
        described, asked = metadata["inputs"][0], [output["name"] for output in metadata["outputs"]]
        for version in ("", "1.0"):
            answer = client.infer(
                model, [tensor(described["name"], array, described["datatype"])], version, headers=dict(BEARER)
            )
            assert all(answer.as_numpy(name).shape[0] == len(array) for name in asked)
        assert not client.is_model_ready("other", headers=BEARER)
