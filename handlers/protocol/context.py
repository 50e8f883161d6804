"""What the handlers use of TorchServe's context."""

from __future__ import annotations

from typing import Any, Protocol


class Context(Protocol):
    """What a handler uses of `ts.context.Context`."""

    model_name: str
    manifest: dict[str, Any] | None
    system_properties: dict[str, Any]
    model_yaml_config: dict[str, Any]
    metrics: Any
    request_ids: dict[int, str]  # by the row's index in the batch

    def get_all_request_header(self, idx: int) -> dict[str, Any]: ...
    def set_response_status(self, code: int, phrase: str, idx: int) -> None: ...
    def set_response_content_type(self, idx: int, value: str) -> None: ...
    def set_response_header(self, idx: int, key: str, value: str) -> None: ...
