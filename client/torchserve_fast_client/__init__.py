"""Ask models of the torchserve-fast-handlers: docs/clients/python.md shows how.

with Client("http://127.0.0.1:8080", token="...") as client:
    vectors = client.embed("sentences", ["one text", "and another"])  # (2, numbers)
"""

from torchserve_fast_client._clients import AsyncClient, Client
from torchserve_fast_client._errors import RequestFailed
from torchserve_fast_client._results import Entity, Label, Rank

__all__ = ["AsyncClient", "Client", "Entity", "Label", "Rank", "RequestFailed"]
