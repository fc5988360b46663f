"""A service in this process, on the model of the tiny task: what it answers, and what it refuses."""

import asyncio
import json
import re
import time

import numpy as np
import pytest

from seq2seq_jax.serving.app import Service
from seq2seq_jax.serving.door import Door
from seq2seq_jax.serving.limits import Limits
from seq2seq_jax.serving.model import Model
from tests.serving.clients import ask, converse
from tests.tiny import sentences

TOKEN = "0123456789abcdef"
JSON = {"Content-Type": "application/json"}
LINES = sentences(80, seed=9)


def same(found: dict, hypothesis) -> bool:
    return found["text"] == hypothesis.text and found["score"] == pytest.approx(hypothesis.score, rel=1e-4, abs=1e-5)


def test_a_text_is_answered_with_its_translation(model):
    (expected,) = model.translator.translate(["ant bee"])
    found = ask(model, {"text": "ant bee"})
    assert set(found) == {"text", "score", "cut"} and same(found, expected)


def test_texts_are_answered_in_their_order_and_a_blank_one_by_a_blank(model):
    lines = ["ant bee", "", "cat", " \t ", "dog eel fox"]
    found = ask(model, {"texts": lines})["translations"]
    assert all(map(same, found, model.translator.translate(lines)))
    assert [each["text"] for each in found] == ["ANT BEE", "", "CAT", "", "DOG EEL FOX"]


def test_hypotheses_and_details_are_given_when_asked_for(model):
    ((first, second),) = model.translator.translate(["ant bee"], num_best=2, details=True)
    found = ask(model, {"text": "ant bee", "num_best": 2, "details": True})
    for each, expected in zip(found["hypotheses"], (first, second), strict=True):
        assert same(each, expected)
        assert each["source_tokens"] == ["ant", "bee", "</s>"] and each["tokens"] == list(expected.details.tokens)
        np.testing.assert_allclose(each["log_probs"], expected.details.log_probs, rtol=1e-3, atol=1e-5)
        np.testing.assert_allclose(each["attention"], expected.details.weights, atol=1e-4)
    assert found["attention"] == found["hypotheses"][0]["attention"]
    assert set(ask(model, {"text": "ant bee", "details": True})) == {*found} - {"hypotheses"}
    assert len(ask(model, {"text": "ant bee", "num_best": 1})["hypotheses"]) == 1


def test_who_sends_unknown_words_is_told(model):
    found = ask(model, {"texts": ["ant zebra", "ant"]})["translations"]
    assert found[0]["warnings"] == ["The text has symbols that the vocabulary lacks; they are read as unknown."]
    assert "warnings" not in found[1]


@pytest.mark.filterwarnings("ignore:.*(reached the limit|left out|oldest turns)")
def test_turns_of_a_dialogue_come_before_the_text(dialogue):
    found = ask(dialogue, {"text": "cat", "turns": ["ant bee", "dog"]})
    assert same(found, dialogue.translator.translate(["ant bee\tdog\tcat"])[0])
    assert found["text"] != ask(dialogue, {"text": "cat"})["text"]
    long = ask(dialogue, {"text": "cat", "turns": ["ant bee eel", "dog"], "details": True})
    assert long["warnings"] == ["The oldest turns are left out, to fit what the model reads."]
    assert long["source_tokens"] == ["...", "dog", "|", "cat", "</s>"]


@pytest.mark.parametrize(
    "content, message",
    [
        ({"turns": "ant"}, "turns must be a list of strings, got a string."),
        ({"turns": ["ant", 3]}, "turns[1] must be a string, got a number."),
        ({"turns": ["ant", "a\0"]}, "turns[1] holds a NUL character."),
        ({"turns": ["a\nb"]}, "turns[0] has more than one line"),
        ({"turns": ["a\tb"]}, "turns[0] has a tab, which stands between turns"),
        ({"text": "a\tb"}, 'text has a tab, which stands between turns; send the turns before it as "turns".'),
        ({"turns": ["a"] * 3}, "This model reads 2 turns before a text, got 3; leave out the oldest."),
        ({"text": ""}, "text is empty."),
    ],
)
def test_what_are_no_turns_is_refused(dialogue, content, message):
    async def talk(client, _):
        answer = await client.post("/translate", json={"text": "cat"} | content)
        assert answer.status_code == 422 and message in answer.json()["error"], answer.text
        several = await client.post("/translate", json={"texts": ["cat"], "turns": []})
        assert 'before one "text"' in several.json()["error"]

    converse(dialogue, talk)


def test_a_model_of_dialogue_has_a_page_to_chat_at(dialogue):
    async def talk(client, _):
        assert "<h1>Chat</h1>" in (await client.get("/")).text
        assert (await client.get("/model")).json()["context_turns"] == 2

    converse(dialogue, talk)


@pytest.mark.filterwarnings("ignore:.*(reached the limit|left out|oldest turns)")
def test_tags_stand_behind_a_text(tagged):
    (expected,) = tagged.translator.translate(["ant\tV;PST"])
    assert same(ask(tagged, {"text": "ant\tV;PST"}), expected)

    async def talk(client, _):
        for text, message in (("ant", "has no tab and tags behind it"), ("\tV", "text is empty.")):
            answer = await client.post("/translate", json={"text": text})
            assert answer.status_code == 422 and message in answer.json()["error"]

    converse(tagged, talk)


def test_many_at_once_get_each_their_own(model):
    """Single texts, lists, hypotheses, details and streams, all at the same time, against translations alone."""
    kinds = ({}, {}, {"num_best": 2}, {"details": True}, {"num_best": 2, "details": True}, {"stream": True})

    async def talk(client, service):
        asked = [{"text": line} | kinds[number % len(kinds)] for number, line in enumerate(LINES)]
        asked += [{"texts": LINES[start : start + 10]} for start in range(0, len(LINES), 10)]
        answers = await asyncio.gather(*(client.post("/translate", json=each) for each in asked))
        assert {answer.status_code for answer in answers} == {200} and service.admission.total == 0
        return answers[: len(LINES)], answers[len(LINES) :]

    alone, in_lists = converse(model, talk)
    expected = model.translator.translate(LINES)
    for number, (answer, best) in enumerate(zip(alone, expected, strict=True)):
        if "stream" not in kinds[number % len(kinds)]:
            assert same(answer.json(), best)
    found = [each for answer in in_lists for each in answer.json()["translations"]]
    assert all(map(same, found, expected))


REFUSED = [
    (b"", 400, "The body is not JSON: Expecting value"),
    (b"{", 400, "The body is not JSON"),
    (b'{"text": "\xff"}', 400, "The body is not UTF-8 (byte 0xff at 10)."),
    (b'{"text": "a", "num_best": NaN}', 400, "NaN is no number"),
    (b'{"text": "a", "text": "b"}', 400, "the field 'text' is there twice"),
    (b"[" * 60_000, 400, "nested too deeply"),
    (b'{"num_best": ' + b"9" * 5_000 + b"}", 400, "The body is not JSON"),
    (b"[]", 422, "got a list."),
    (b'"ant"', 422, "got a string."),
    (b"{}", 422, 'Give "text", a string, or "texts"'),
    ({"text": "a", "texts": ["b"]}, 422, 'Give "text", a string, or "texts"'),
    ({"txt": "a"}, 422, "Unknown field 'txt'. Did you mean text?"),
    ({"q": "a"}, 422, "There are text, texts, turns, num_best, details, stream."),
    ({"text": 3}, 422, "text must be a string, got a number."),
    ({"text": None}, 422, "text must be a string, got null."),
    ({"text": ["a"]}, 422, "text must be a string, got a list."),
    ({"text": ""}, 422, "text is empty."),
    ({"text": " \t"}, 422, "text is empty."),
    ({"text": "a\0b"}, 422, "text holds a NUL character."),
    (b'{"text": "\\ud800"}', 422, "text is not UTF-8 text."),
    ({"text": "a\nb"}, 422, 'text has more than one line; send its lines as "texts".'),
    ({"texts": "a"}, 422, "texts must be a list of strings, got a string."),
    ({"texts": []}, 422, "texts is empty."),
    ({"texts": ["a", {}]}, 422, "texts[1] must be a string, got an object."),
    ({"texts": ["a"] * 65}, 422, "at most 64 texts, got 65"),
    ({"text": "ant " * 8}, 422, "text has 9 tokens, and at most 8 are read; split it."),
    ({"texts": ["ant", "ant " * 8]}, 422, "texts[1] has 9 tokens"),
    ({"text": "ant", "num_best": 0}, 422, "num_best must be from 1 to 2, the size of the beam; got 0."),
    ({"text": "ant", "num_best": 3}, 422, "num_best must be from 1 to 2"),
    ({"text": "ant", "num_best": True}, 422, "num_best must be a whole number, got true."),
    ({"text": "ant", "num_best": 1.5}, 422, "num_best must be a whole number, got a number."),
    ({"text": "ant", "details": 1}, 422, "details must be true or false, got a number."),
    ({"text": "ant", "turns": ["bee"]}, 422, "this model was trained without; leave them out."),
    ({"texts": ["ant"], "stream": True}, 422, '"stream" gives the tokens of one "text"'),
    ({"text": "ant", "num_best": 2, "stream": True}, 422, '"stream" gives the tokens of one "text"'),
    ({"text": "a" * 70_000}, 413, "A request has at most 65,536 bytes"),
]


def test_what_is_refused_is_told_in_one_message_and_the_next_request_is_answered(model):
    async def talk(client, service):
        for content, status, message in REFUSED:
            body = content if isinstance(content, bytes) else json.dumps(content).encode()
            answer = await client.post("/translate", content=body, headers=JSON)
            assert (answer.status_code, list(answer.json())) == (status, ["error"]), (content, answer.text)
            assert message in answer.json()["error"], answer.text
            following = await client.post("/translate", json={"text": "cat"})
            assert following.json()["text"] == "CAT"
        assert service.admission.total == 0

    converse(model, talk)


def test_a_body_without_its_length_is_refused_as_soon_as_it_is_too_large(model):
    async def endless():
        for number in range(100):
            assert number < 10, "more was read than is allowed"
            yield b" " * 10_000

    async def talk(client, _):
        answer = await client.post("/translate", content=endless(), headers=JSON)
        assert answer.status_code == 413

    converse(model, talk)


def test_a_body_of_another_kind_is_refused(model):
    """A form of a page elsewhere can be sent without asking the server first; JSON cannot."""

    async def talk(client, _):
        for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""):
            answer = await client.post("/translate", content=b'{"text": "ant"}', headers={"Content-Type": kind})
            assert answer.status_code == 415 and "must be application/json" in answer.json()["error"]
        right = await client.post(
            "/translate", content=b'{"text": "ant"}', headers={"Content-Type": "Application/JSON;charset=utf-8"}
        )
        assert right.status_code == 200

    converse(model, talk)


def test_other_paths_and_methods_are_refused_in_json(model):
    async def talk(client, _):
        for method, path, status, message in [
            ("GET", "/translate", 405, "GET is not for /translate."),
            ("POST", "/", 405, "POST is not for /."),
            ("GET", "/transalte", 404, "There is no /transalte. Did you mean /translate?"),
            ("GET", "/translate/", 404, "Did you mean /translate?"),
            ("GET", "/../../etc/passwd", 404, "There is no "),
            ("GET", "/%2e%2e/page.css", 404, "There is no "),
            ("OPTIONS", "/translate", 405, "OPTIONS is not for /translate."),
        ]:
            answer = await client.request(method, path)
            assert (answer.status_code, list(answer.json())) == (status, ["error"]), answer.text
            assert message in answer.json()["error"]
            assert not [name for name in answer.headers if name.startswith("access-control")]

    converse(model, talk)


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
        answer = await client.post("/translate", content=silent(), headers=JSON)
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


def test_what_happened_is_counted(model):
    async def talk(client, _):
        for text in ("ant bee", "cat", ""):
            await client.post("/translate", json={"text": text})
        await client.post("/translate", json={"text": "dog", "stream": True})
        await client.get("/no/such/path")
        return (await client.get("/metrics")).text

    text = converse(model, talk)
    for row in (
        'seq2seq_requests_total{path="/translate",status="200"} 3.0',
        'seq2seq_requests_total{path="/translate",status="422"} 1.0',
        'seq2seq_requests_total{path="other",status="404"} 1.0',
        'seq2seq_request_seconds_count{path="/translate"} 4.0',
        'seq2seq_tokens_total{side="source"} 7.0',
        'seq2seq_tokens_total{side="target"} 7.0',
        "seq2seq_batch_lines_count 2.0",
        "seq2seq_lines 0.0",
        f"seq2seq_programs {model.programs.num_compiled:.1f}",
    ):
        assert f"\n{row}\n" in text, row
    assert "process_resident_memory_bytes" in text


def test_what_the_model_is_can_be_asked(model):
    async def talk(client, _):
        found = (await client.get("/model")).json()
        assert found["beam_size"] == 2 and found["max_tokens"] == 8 and found["context_turns"] == 0
        health = (await client.get("/healthz")).json()
        assert health["status"] == "ok" and health["programs"]["compiled"] == model.programs.num_compiled

    converse(model, talk)


def test_the_page_holds_nothing_but_its_own_files_and_no_script_or_style_within(model):
    async def talk(client, service):
        page = await client.get("/")
        assert page.headers["content-type"] == "text/html; charset=utf-8"
        policy = page.headers["content-security-policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy and "frame-ancestors 'none'" in policy
        for name in re.findall(r'(?:src|href)="([^"]+)"', page.text):
            assert name == "data:," or (await client.get(f"/{name}")).status_code == 200
        assert "<h1>Translate</h1>" in page.text

    converse(model, talk)


@pytest.mark.parametrize("name", ["translate.html", "chat.html"])
def test_pages_are_self_contained(repository, name):
    folder = repository / "seq2seq_jax" / "serving" / "pages"
    page = (folder / name).read_text()
    assert not re.search(r"<style|style=|\son\w+=|<script(?![^>]*src=)[^>]*>", page)
    named = set(re.findall(r'(?:src|href)="([^"]+)"', page)) - {"data:,"}
    for path in [folder / name, *(folder / file for file in named), folder / "page.js"]:
        text = path.read_text()
        assert not re.search(r"\w://|[\"'(]//", text), path  # no address of elsewhere
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document.write|eval\(", text)
