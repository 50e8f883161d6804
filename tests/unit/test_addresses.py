"""Why a server cannot listen somewhere: a taken port and an address of another machine are told apart."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from per_gpu import plan
from server import addresses, ports
from server.errors import ServerError

CONFIG = Path("/etc/config.properties")
NOWHERE = "203.0.113.9"  # of the block for documentation, RFC 5737


def test_a_free_port_has_no_obstacle() -> None:
    (port,) = ports.free_ports(1)
    for host in ("127.0.0.1", "localhost", *addresses.ALL[:1]):
        assert addresses.obstacle(host, port) is None
        assert ports.why_taken(host, port) is None


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])  # noqa: S104
def test_a_taken_port_wants_another_port(host: str) -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        held.listen()
        port = held.getsockname()[1]
        found = addresses.obstacle(host, port)
    assert found is not None
    told = found.told("choose another one with --port", "choose one of them with --host")
    assert told == f"port {port} of {host} is taken: another program listens there; choose another one with --port"


@pytest.mark.parametrize("host", [NOWHERE, "fd00::1"])
def test_an_address_that_this_machine_has_not_wants_another_address(host: str) -> None:
    (port,) = ports.free_ports(1)
    found = addresses.obstacle(host, port)
    assert found is not None
    told = found.told("choose another one with --port", "choose one of them with --host")
    if host == NOWHERE:
        assert told.startswith(f"this machine has no address {NOWHERE}. Its addresses are 127.0.0.1")
    assert "taken" not in told
    assert told.endswith("; choose one of them with --host")


@pytest.mark.parametrize("host", ["no.such.host.invalid", "a b", "x" * 300])
def test_what_is_no_address_is_named(host: str) -> None:
    found = addresses.obstacle(host, 18080)
    assert found is not None
    assert found.reason.startswith(
        f"{host!r} is no address, and no name that this machine can look up. Its addresses are 127."
    )
    assert not found.is_port


def test_a_port_of_the_systems_is_not_called_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: socket.socket, place: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(socket.socket, "bind", refuse)
    found = addresses.obstacle("127.0.0.1", 80)
    assert found is not None
    assert found.is_port
    assert "this user may not listen at port 80; ports from" in found.reason


def test_an_address_in_config_properties_that_is_not_here_is_no_taken_port() -> None:
    with pytest.raises(ServerError, match=rf"{NOWHERE}:18080: this machine has no address .*config.properties") as e:
        ports.check_free(f"http://{NOWHERE}:18080", CONFIG)
    assert "taken" not in str(e.value)


@pytest.mark.parametrize("address", ["http://127.0.0.1", "127.0.0.1:8080", "http://127.0.0.1:99999"])
def test_an_address_in_config_properties_that_is_none_is_named(address: str) -> None:
    with pytest.raises(ServerError, match=r"is no address; wanted: http://HOST:PORT"):
        ports.check_free(address, CONFIG)


def test_a_host_of_clients_that_is_not_here_is_no_taken_port() -> None:
    (port,) = ports.free_ports(1)
    with pytest.raises(ValueError, match=r"clients: this machine has no address .*choose another --host"):
        plan.check_ports([], NOWHERE, port)


@pytest.mark.parametrize(
    ("host", "port", "told"), [("", 8080, "no address is named"), ("127.0.0.1", 70000, "70000 is")]
)
def test_what_the_system_would_take_for_something_else_is_refused(host: str, port: int, told: str) -> None:
    """To the system no address is all addresses, and a port is a number below 65536."""
    found = addresses.obstacle(host, port)
    assert found is not None
    assert found.reason.startswith(told)
