"""Where a server listens, and what it wants to be shown there."""

import socket

import pytest

from seq2seq_jax.errors import UserError
from seq2seq_jax.serving.door import Door, listen, open_door, read_token
from seq2seq_jax.serving.limits import Limits
from tests.serving.clients import converse

TOKEN = "0123456789abcdef"


@pytest.fixture(autouse=True)
def no_token(monkeypatch):
    monkeypatch.delenv("SEQ2SEQ_JAX_TOKEN", raising=False)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "127.0.0.2"])
def test_a_loopback_address_needs_no_token(host):
    door, place = open_door(host, 0, None)
    with place:
        listen(place, host, 0)
        assert place.proto == socket.IPPROTO_TCP  # else asyncio leaves Nagle's algorithm on: 40 ms an answer
        assert door == (host, None) and place.getsockname()[1] > 0


def test_any_other_address_needs_one():
    for host in ("0.0.0.0", "::"):
        with pytest.raises(UserError, match=f"--host {host} can be reached from other machines: .*--token-file FILE"):
            open_door(host, 0, None)
    door, place = open_door("0.0.0.0", 0, TOKEN)
    place.close()
    assert door.token == TOKEN


def test_a_port_in_use_is_told_at_once():
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(UserError, match=f"--port {port} of 127.0.0.1 is in use; choose another, or 0"):
            open_door("127.0.0.1", port, None)


def test_a_port_that_another_server_has_taken_meanwhile_is_told():
    _, first = open_door("127.0.0.1", 0, None)
    port = first.getsockname()[1]
    _, second = open_door("127.0.0.1", port, None)
    with first, second:
        listen(first, "127.0.0.1", port)
        with pytest.raises(UserError, match=f"--port {port} of 127.0.0.1 is in use"):
            listen(second, "127.0.0.1", port)


@pytest.mark.parametrize(
    "host, port, message",
    [
        ("no such host", 0, "--host no such host: .*Give an address of this machine"),
        ("x" * 300, 0, "--host x+.*Give an address of this machine"),
        ("192.0.2.1", 0, "--host 192.0.2.1 --port 0: "),
        ("127.0.0.1", 65_536, "--port must be from 0 to 65,535, got 65536"),
        ("127.0.0.1", -1, "--port must be from 0"),
    ],
)
def test_what_is_no_address_of_this_machine_is_refused(host, port, message):
    with pytest.raises(UserError, match=message):
        open_door(host, port, TOKEN)


def test_a_token_comes_from_a_file_or_the_environment_and_the_file_goes_first(tmp_path, monkeypatch):
    assert read_token(None) is None
    monkeypatch.setenv("SEQ2SEQ_JAX_TOKEN", TOKEN)
    assert read_token(None) == TOKEN
    file = tmp_path / "token"
    file.write_text("another-token-of-letters\n")
    file.chmod(0o600)
    assert read_token(file) == "another-token-of-letters"
    file.chmod(0o644)
    with pytest.warns(UserWarning, match="Other users may read the token in .*; forbid it with chmod 600"):
        read_token(file)


@pytest.mark.parametrize(
    "content", [b"", b"\n", b"two words 0123456789", b"\xff" * 20, "gemäß0123456789".encode(), b"a\nb" * 9]
)
def test_what_is_no_token_is_refused(tmp_path, content):
    file = tmp_path / "token"
    file.write_bytes(content)
    file.chmod(0o600)
    with pytest.raises(UserError, match="token must hold a token of letters, digits and signs of ASCII"):
        read_token(file)


def test_a_token_that_can_be_guessed_or_read_by_nobody_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("SEQ2SEQ_JAX_TOKEN", "secret")
    with pytest.raises(UserError, match="The token of SEQ2SEQ_JAX_TOKEN has 6 characters, and 16 are the least"):
        read_token(None)
    (tmp_path / "token.txt").write_text(TOKEN)
    with pytest.raises(UserError, match="There is no file .*/token. Did you mean token.txt?"):
        read_token(tmp_path / "token")
    with pytest.raises(UserError, match="Cannot read .*: Is a directory"):
        read_token(tmp_path)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"max_tokens": 1}, "--max-tokens must be 2 or more, got 1"),
        ({"max_texts": 0}, "--max-texts must be 1 or more, got 0"),
        ({"max_body": -1}, "--max-body must be 1 or more"),
        ({"timeout": 0.0}, "--timeout must be more than 0 and at most 86,400, got 0"),
        ({"timeout": float("nan")}, "--timeout must be more than 0"),
        ({"timeout": float("inf")}, "--timeout must be more than 0"),
        ({"max_lines": 63}, "--max-lines 63 is less than --max-texts 64: a request of that many texts would never be"),
        ({"max_client_lines": 3}, "Set --max-client-lines 64 or more, or --max-texts 3"),
    ],
)
def test_limits_that_nobody_could_keep_are_refused(fields, message):
    with pytest.raises(UserError, match=message):
        Limits(**fields)


# what requests show


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "127.0.0.1:8000", "localhost:80", "[::1]:8000", "LOCALHOST", "127.9.9.9"]
)
def test_a_loopback_name_is_let_in(model, host):
    async def talk(client, _):
        assert (await client.get("/healthz", headers={"Host": host})).status_code == 200

    converse(model, talk)


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", "10.0.0.1", "[::2]", ""]
)
def test_another_name_of_this_address_is_not(model, host):
    async def talk(client, _):
        for path in ("/", "/healthz", "/model"):
            answer = await client.get(path, headers={"Host": host})
            assert answer.status_code == 421 and "loopback" in answer.json()["error"]

    converse(model, talk)


def test_pages_of_another_origin_are_refused(model):
    async def talk(client, _):
        for origin, status in [
            ("http://127.0.0.1", 200),
            ("http://evil.example", 403),
            ("null", 403),
            ("http://127.0.0.1:81", 403),
            ("http://[", 403),
        ]:
            answer = await client.post("/translate", json={"text": "ant"}, headers={"Origin": origin})
            assert answer.status_code == status, origin

    converse(model, talk)


def test_a_token_is_wanted_where_there_is_one_and_opens_all(model):
    async def talk(client, _):
        for shown in (
            {},
            {"Authorization": "Bearer wrong"},
            {"Authorization": f"Basic {TOKEN}"},
            {"Authorization": b"Bearer \xe9"},
        ):
            for path in ("/model", "/metrics", "/unknown"):
                answer = await client.get(path, headers=shown)
                assert answer.status_code == 401 and answer.headers["WWW-Authenticate"] == "Bearer"
            answer = await client.post("/translate", json={"text": "ant"}, headers=shown)
            assert answer.status_code == 401
        for path in ("/", "/page.js", "/healthz"):
            assert (await client.get(path)).status_code == 200
        right = {"Authorization": f"Bearer {TOKEN}", "Host": "models.example", "Origin": "https://models.example"}
        assert (await client.post("/translate", json={"text": "ant"}, headers=right)).json()["text"] == "ANT"
        assert (await client.get("/metrics", headers=right)).status_code == 200

    converse(model, talk, Door("0.0.0.0", TOKEN))
