"""Too many requests, too slow ones, those that fail, and the end."""

import asyncio
import time

from seq2seq_jax.serving.app import Service
from seq2seq_jax.serving.door import Door
from seq2seq_jax.serving.limits import Limits
from seq2seq_jax.serving.model import Model
from tests.serving.clients import converse


def slow(model: Model, seconds: float) -> Model:
    """The same, but a search takes a while."""

    class Slow(Model):
        def __init__(self):
            vars(self).update(vars(model))

        def search(self, lines, kind, shape):
            time.sleep(seconds)
            return model.search(lines, kind, shape)

    return Slow()


def test_beyond_the_limits_of_all_and_of_one_client_requests_are_refused_and_told_when_to_come_again(model):
    async def talk(client, service):
        answers = await asyncio.gather(*(client.post("/translate", json={"text": "ant"}) for _ in range(12)))
        refused = [answer for answer in answers if answer.status_code != 200]
        assert len(refused) == 12 - 4 and all(answer.headers["Retry-After"] == "1" for answer in refused)
        assert (await client.post("/translate", json={"text": "ant"})).status_code == 200
        return {answer.status_code for answer in refused}, refused[0].json()["error"]

    limits = {"max_texts": 4, "max_client_lines": 4}
    status, message = converse(slow(model, 0.2), talk, **limits)
    assert status == {429} and message == "4 texts of this client wait for an answer, and 4 may."
    status, message = converse(slow(model, 0.2), talk, max_texts=4, max_lines=4)
    assert status == {503} and message == "4 texts wait for an answer, and 4 may."


def test_a_request_that_takes_too_long_is_refused_and_its_lines_are_searched_no_more(model, monkeypatch):
    slower, searched = slow(model, 0.6), list[list[str]]()
    search = slower.search
    monkeypatch.setattr(slower, "search", lambda lines, *program: searched.append([*lines]) or search(lines, *program))

    async def talk(client, service):
        first = asyncio.create_task(client.post("/translate", json={"text": "ant"}))
        await asyncio.sleep(0.1)
        for answer in await asyncio.gather(first, client.post("/translate", json={"text": "bee"})):
            assert answer.status_code == 503 and "no answer within 0.3 seconds" in answer.json()["error"]
        assert service.admission.total == 0
        await asyncio.sleep(0.8)

    converse(slower, talk, timeout=0.3)
    assert searched == [["ant"]]


def test_a_body_that_does_not_come_is_waited_for_no_longer_than_for_an_answer(model):
    async def silent():
        yield b"{"
        await asyncio.sleep(60)

    async def talk(client, _):
        answer = await client.post("/translate", content=silent(), headers={"Content-Type": "application/json"})
        assert answer.status_code == 408 and "within 0.2 seconds" in answer.json()["error"]

    converse(model, talk, timeout=0.2)


def test_a_search_that_fails_fails_alone_and_its_traceback_goes_to_the_log_only(model, monkeypatch, caplog):
    broken = slow(model, 0)
    search = broken.search

    def failing(lines, *program):
        if "cat" in lines:
            raise RuntimeError("a secret of the house")
        return search(lines, *program)

    monkeypatch.setattr(broken, "search", failing)

    async def talk(client, service):
        answer = await client.post("/translate", json={"text": "cat"})
        assert (answer.status_code, answer.json()) == (500, {"error": "The server failed to answer; its log says why."})
        assert "a secret of the house" in caplog.text and "Traceback" in caplog.text
        assert (await client.post("/translate", json={"text": "dog"})).json()["text"] == "DOG"
        assert service.admission.total == 0

    converse(broken, talk)


def test_who_comes_while_the_server_ends_is_refused_and_what_was_taken_is_answered(model):
    async def talk(client, service):
        taken = asyncio.create_task(client.post("/translate", json={"text": "ant"}))
        await asyncio.sleep(0.1)
        service.stopping = True
        answer = await client.post("/translate", json={"text": "bee"})
        assert answer.status_code == 503 and answer.headers["Retry-After"] == "1"
        assert (await client.get("/healthz")).status_code == 503
        assert (await taken).json()["text"] == "ANT"

    converse(slow(model, 0.4), talk)


def test_a_client_that_has_gone_is_searched_for_no_more(model):
    """By the interface itself: httpx has no way to go."""

    async def run():
        service = Service(model, Door("127.0.0.1"), Limits())  # nobody works on its queue
        body = [{"type": "http.request", "body": b'{"text": "ant"}', "more_body": False}, {"type": "http.disconnect"}]
        headers = [(b"host", b"localhost"), (b"content-type", b"application/json")]
        scope = {"type": "http", "method": "POST", "path": "/translate", "query_string": b"", "headers": headers}
        sent = list[dict]()

        async def receive():
            return body.pop(0)

        async def send(message):
            sent.append(message)

        await service.app(scope | {"client": ("127.0.0.1", 1)}, receive, send)
        assert sent[0]["status"] == 499 and service.admission.total == 0

    asyncio.run(run())
