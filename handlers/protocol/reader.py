"""TorchServe's rows -> requests with inputs, or with an error each."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from handlers.protocol import adapters, arrivals, codings, deadlines, internal_errors, request_ids, zero_shot
from handlers.protocol.adapter import Adapter
from handlers.protocol.context import Context
from handlers.protocol.errors import InvalidInput, RequestError
from handlers.protocol.interface import Interface
from handlers.protocol.request import Request
from handlers.protocol.row import Row


@dataclass(frozen=True)
class Reader:
    """Reads the rows of one model, each by the adapter of its protocol."""

    model: Interface

    def read(self, rows: Sequence[Mapping[str, Any]], context: Context) -> list[Request]:
        """Return one request per row. What a client sent never raises; an error of ours fails its row alone."""
        now = time.time()
        return [self._read(parameters, context, index, now) for index, parameters in enumerate(rows)]

    def _read(self, parameters: Mapping[str, Any], context: Context, index: int, now: float) -> Request:
        row, adapter = Row(), adapters.DEFAULT
        try:
            row = Row.of(parameters, context.get_all_request_header(index))
            adapter = adapters.adapter_of(row)
            deadline = deadlines.of(row, now)
            if late := deadlines.refusal(deadline):
                raise late
            plain = codings.decoded(row)
            if plain is not row:  # the adapter may be told by the body
                row, adapter = plain, adapters.adapter_of(plain)
            request = self._request(row, adapter)
            request.deadline = deadline
        except RequestError as error:
            request = Request(adapter, error=error)
        except BaseException as error:
            request = Request(adapter, error=internal_errors.log_failure(error, "reading the request"))
        request.is_grpc, request.is_unanswerable = row.is_grpc, row.is_unanswerable
        request.arrived = arrivals.of(row.header(arrivals.HEADER), now)
        request.ids = request_ids.read(row.headers, context.request_ids, index)
        return request

    def _request(self, row: Row, adapter: Adapter) -> Request:
        if row.is_unanswerable:  # nobody will read the answer; the model need not run
            raise InvalidInput("this protocol is not offered; wanted: gRPC's Predictions or StreamPredictions")
        if row.parameters:
            row.refuse_codings()
        request = adapter.read(row, self.model)
        zero_shot.spread(request, self.model)
        self.model.refuse_many(len(request.inputs))
        return request
