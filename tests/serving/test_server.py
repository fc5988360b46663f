"""The command, in processes of its own."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import httpx
import pytest

from tests.serving.clients import events, started

TOKEN = "0123456789abcdef"


def refused(repository, *arguments: str, **environment: str) -> str:
    """What a server says that ends with exit code 2."""
    done = subprocess.run(
        [sys.executable, "-m", "seq2seq_jax", "serve", *map(str, arguments)],
        cwd=repository,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    return done.stderr


def test_a_server_answers_streams_and_ends_when_it_is_told(trained):
    with started(trained) as server:
        with httpx.Client(base_url=server.url, timeout=60) as client:
            assert client.post("/translate", json={"text": "ant bee"}).json()["text"] == "ANT BEE"
            with client.stream("POST", "/translate", json={"text": "ant bee", "stream": True}) as answer:
                chunks = list(answer.iter_text())
            *parts, last = events("".join(chunks))
            assert "".join(part["delta"] for part in parts) == last["text"] == "ANT BEE"
            assert client.post("/translate", content=b"x" * 70_000).status_code in (413, 415)
            assert client.post("/translate", json={"text": "cat"}).json()["text"] == "CAT"
        assert server.stop() == 0


def test_what_was_taken_is_answered_before_the_end(trained):
    """Several hundred texts, of which the first are searched when Ctrl-C comes."""
    with started(trained, "--max-lines", "9999", "--max-client-lines", "9999") as server:
        answers = list[httpx.Response | Exception]()

        def ask() -> None:
            try:
                answers.append(httpx.post(f"{server.url}/translate", json={"texts": ["ant bee"] * 64}, timeout=60))
            except httpx.HTTPError as error:
                answers.append(error)

        threads = [threading.Thread(target=ask) for _ in range(12)]
        for thread in threads:
            thread.start()
        deadline = time.monotonic() + 60
        while "seq2seq_lines 0.0" in httpx.get(f"{server.url}/metrics", timeout=60).text:
            assert time.monotonic() < deadline
        code = server.stop(signal.SIGINT)
        for thread in threads:
            thread.join()
    assert code == 0
    given = [answer for answer in answers if isinstance(answer, httpx.Response)]
    statuses = [answer.status_code for answer in given]
    assert 200 in statuses and set(statuses) <= {200, 503}
    for answer in given:
        if answer.status_code == 200:
            assert [each["text"] for each in answer.json()["translations"]] == ["ANT BEE"] * 64


def test_a_second_ctrl_c_ends_at_once(trained):
    with started(trained) as server:
        host, port = server.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as connection:  # whose body never comes
            head = ("POST /translate HTTP/1.1", f"Host: {host}", "Content-Type: application/json", "Content-Length: 9")
            connection.sendall("\r\n".join([*head, "", ""]).encode())
            time.sleep(0.2)
            server.process.send_signal(signal.SIGINT)
            time.sleep(0.3)
            begin = time.monotonic()
            assert server.stop(signal.SIGINT) == 130
            assert time.monotonic() - begin < 3  # and not the seconds that the body is waited for


def test_a_token_lets_in(trained):
    with started(trained, SEQ2SEQ_JAX_TOKEN=TOKEN) as server:
        assert httpx.post(f"{server.url}/translate", json={"text": "ant"}).status_code == 401
        right = {"Authorization": f"Bearer {TOKEN}"}
        assert (
            httpx.post(f"{server.url}/translate", json={"text": "ant"}, headers=right, timeout=60).json()["text"]
            == "ANT"
        )


def test_what_cannot_be_served_is_told_in_one_message(trained, repository, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        assert f"--port {port} of 127.0.0.1 is in use" in refused(repository, "--workdir", trained, "--port", port)
    assert "is not a run directory" in refused(repository, "--workdir", tmp_path)
    message = refused(repository, "--workdir", trained, "--host", "0.0.0.0")
    assert "can be reached from other machines" in message
    message = refused(repository, "--workdir", trained, "--port", "0", "--max-tokens", "6000")
    assert "--max-tokens 6,000 is more than the 5,000 that are translated" in message


@pytest.mark.parametrize("name", ["starlette", "uvicorn"])
def test_without_the_extra_it_is_named(name, monkeypatch, trained, capfd):
    import importlib.util

    from seq2seq_jax import cli

    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda wanted: None if wanted == name else find(wanted))
    assert cli.main(["serve", "--workdir", str(trained)]) == 2
    assert capfd.readouterr().err == f"error: serve needs {name}: pip install 'seq2seq-jax[serve]'.\n"


def test_a_head_that_is_no_request_is_refused_and_the_next_one_answered(trained):
    with started(trained) as server:
        host, port = server.url.removeprefix("http://").split(":")
        for sent in (
            b"nonsense\r\n\r\n",
            b"\x16\x03\x01" + bytes(100),
            b"GET / HTTP/1.1\r\nHost: a\r\n" + b"A: " + b"x" * 200_000,
        ):
            with socket.create_connection((host, int(port))) as connection:
                try:
                    connection.sendall(sent)
                    connection.settimeout(10)
                    assert connection.recv(1_000).startswith(b"HTTP/1.1 4")
                except ConnectionError:
                    pass
        assert json.loads(httpx.get(f"{server.url}/healthz").text)["status"] == "ok"
        assert server.stop() == 0
