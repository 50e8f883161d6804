"""OpenAI's embeddings: POST .../embeddings or .../v1/embeddings behind /predictions/NAME/VERSION.

Source: https://platform.openai.com/docs/api-reference/embeddings
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from typing import Any

from handlers.protocol import fields
from handlers.protocol.adapter import Adapter, Answer, json_answer
from handlers.protocol.errors import EmptyRequest, InputTooLong, InvalidOption, RequestError, UnknownModel
from handlers.protocol.interface import Interface
from handlers.protocol.request import Request
from handlers.protocol.row import Row
from handlers.protocol.text_inputs import WANTED, refuse_other_model, refuse_other_tasks, texts_or_ids

PATHS = ("embeddings", "v1/embeddings")
CODES = {InputTooLong: "context_length_exceeded", UnknownModel: "model_not_found"}  # other codes are our own
OF_INPUT = (EmptyRequest, InputTooLong)


class OpenAI(Adapter):
    """Embeddings as numbers or base64, with the tokens that they cost."""

    by_path = True

    def claims(self, row: Row) -> bool:
        return row.url_path in PATHS

    def read(self, row: Row, model: Interface) -> Request:
        body, sent = fields.read(row, model)
        refuse_other_tasks(model, "embeddings")
        refuse_other_model(body, model)
        body.text("user")  # names an end user, which changes no answer
        inputs = texts_or_ids(body.required("input", WANTED), "input")
        chosen = body.options(("encoding_format", "dimensions", "prompt_name"), model)
        body.refuse_rest()
        if "dtype" in sent:
            raise InvalidOption("OpenAI's base64 is of float32; the header X-Dtype is for /predictions/NAME itself")
        # OpenAI's own shorter embeddings have length 1 too.
        defaults = {"normalize": True} if model.normalizes else {}
        return Request(self, inputs, fields.together(sent, chosen, defaults), functools.partial(_listed, model.name))

    def write(self, request: Request) -> Answer:
        content: Any = request.combine(request.answers)
        return json_answer({**content, "usage": request.usage})

    def write_error(self, error: RequestError) -> Answer:
        """Return the error as OpenAI's clients read it."""
        name = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", type(error).__name__).lower()
        content = {
            "message": error.message,
            "type": "invalid_request_error" if error.status < 500 else "server_error",
            "param": error.field or ("input" if isinstance(error, OF_INPUT) else None),
            "code": CODES.get(type(error), name),
        }
        return json_answer({"error": content, **error.request_ids.fields()}, error.status)


def _listed(model: str, answers: Sequence[Any]) -> object:
    data = [{"object": "embedding", "index": index, "embedding": answer} for index, answer in enumerate(answers)]
    return {"object": "list", "data": data, "model": model}


ADAPTER = OpenAI()
