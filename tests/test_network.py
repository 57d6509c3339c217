"""The interface by which workers meet: the one of the node's Ray address, unless the user named one."""

import socket

import pytest

from search.slots import network


def test_the_interface_of_an_address_is_found() -> None:
    names = [name for _, name in socket.if_nameindex()]
    assert network.interface_of("127.0.0.1") in names
    assert network.interface_of("203.0.113.9") is None  # of a block that is for documentation only


def test_the_interface_of_ray_s_address_is_used_unless_one_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray.util.get_node_ip_address", lambda: "127.0.0.1")
    for name in network.VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "ib0")
    chosen = network.choose_interface()
    assert chosen == {
        "GLOO_SOCKET_IFNAME": network.interface_of("127.0.0.1"),
        "NCCL_SOCKET_IFNAME": "ib0",
    }
