"""Bytes reach process 0 and come back; that process 0 is gone is kept from the client."""

import socket
import sys
import threading

import pytest

from fedjax_lora.core import coordinator_relay


@pytest.fixture
def first(monkeypatch):
    """What listens in place of process 0."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(30)
        yield server


def connect(address):
    host, port = address.split(":")
    return socket.create_connection((host, int(port)), 30)


def address_of(server):
    return f"127.0.0.1:{server.getsockname()[1]}"


def test_client_connection_stays_open_after_process_0_has_ended(first):
    with coordinator_relay.relayed(address_of(first)) as local, connect(local) as client:
        there, _ = first.accept()
        much = bytes(range(256)) * 4000
        threading.Thread(target=client.sendall, args=(much,)).start()
        assert there.recv(len(much), socket.MSG_WAITALL) == much
        there.sendall(b"last words")
        there.close()
        assert client.recv(10, socket.MSG_WAITALL) == b"last words"
        client.sendall(b"to nobody")
        client.settimeout(0.2)
        with pytest.raises(TimeoutError):
            client.recv(1)
        client.sendall(b"to nobody")
    with pytest.raises(ConnectionRefusedError):
        connect(local)


def test_end_of_the_client_connection_is_forwarded(first):
    with coordinator_relay.relayed(address_of(first)) as local:
        client = connect(local)
        there, _ = first.accept()
        client.close()
        there.settimeout(30)
        assert there.recv(1) == b""
        there.close()


def test_connection_is_closed_while_process_0_does_not_listen_yet(first):
    """Then JAX's client tries again, as it does without a relay."""
    address = address_of(first)
    first.close()
    with coordinator_relay.relayed(address) as local:
        with connect(local) as client:
            assert client.recv(1) == b""
        with socket.create_server(("127.0.0.1", int(address.split(":")[1]))) as server:
            server.settimeout(30)
            with connect(local) as client:
                there, _ = server.accept()
                there.sendall(b"x")
                assert client.recv(1) == b"x"
                there.close()


@pytest.mark.parametrize("name", ["HTTPS_PROXY", "no_proxy", "JAX_MTLS_CERT_FILE"])
def test_platforms_that_need_the_host_name_bypass_the_relay(name, first, monkeypatch):
    monkeypatch.setenv(name, "x")
    monkeypatch.setattr(sys, "executable", "none")
    with coordinator_relay.relayed("worker:1") as local:
        assert local == "worker:1"
