"""Greedy search by steps against the one that is a single program, on models of random weights: they write anything."""

import time
from dataclasses import replace

import pytest

from seq2seq_jax.serving.model import Model
from seq2seq_jax.serving.streaming import Stream
from seq2seq_jax.translator import Translator
from tests.serving.clients import converse, events
from tests.serving.random_models import random_translator

SOURCES = ("der Hund läuft ▁ schnell", "ein  Hund und eine Katze", "Katze")
TARGETS = ("the dog runs ▁ fast", "a dog and a cat", "cat")
LINES = ["der Hund", "eine Katze läuft und läuft", "schnell", "ein Zebra 17 ▁▁ läuft", "Katze und Emu und Emu"]
CASES = {
    "bpe": {"data": {"vocabulary": "bpe", "vocab_size": 40, "lowercase": True, "joint_vocabulary": True}},
    "characters": {"data": {"vocabulary": "characters"}},
    "copied words": {"data": {"vocabulary": "words", "joint_vocabulary": True}, "model": {"copy": True}},
    "copied pieces": {
        "data": {"vocabulary": "bpe", "vocab_size": 40, "joint_vocabulary": True},
        "model": {"copy": True},
    },
    "rules": {
        "data": {"vocabulary": "characters"},
        "decode": {"min_length": 5, "no_repeat_ngram": 2, "avoid": ("a", "og")},
    },
    "unknown words replaced": {"data": {"vocabulary": "words"}, "decode": {"replace_unknown": True}},
    "an ensemble": {"data": {"vocabulary": "characters"}, "seeds": (2, 3)},
    "no attention": {
        "data": {"vocabulary": "words"},
        "model": {"attention": "none", "decoder": "plain", "output": "linear", "input_feeding": False},
    },
}


def written(model: Model, line: str) -> Stream:
    stream = model.stream(line, int(model.encode([line]).lengths[0]))
    while not stream.done:
        stream.advance()
    return stream


@pytest.fixture(scope="module", params=CASES)
def served(request: pytest.FixtureRequest) -> Model:
    model = Model(random_translator(SOURCES, TARGETS, **CASES[request.param]), max_tokens=40)
    model.programs.compile_first(lambda: None)
    return model


@pytest.mark.filterwarnings("ignore:.*(unknown symbols|reached the limit)")
def test_what_is_written_token_by_token_is_what_greedy_search_finds(served):
    expected = served.translator.translate(LINES)
    assert len({each.text for each in expected}) > 1
    for line, best in zip(LINES, expected, strict=True):
        found = written(served, line)
        assert found.hypothesis()._replace(score=0.0) == best._replace(score=0.0)
        assert found.hypothesis().score == pytest.approx(best.score, rel=1e-4)


@pytest.mark.filterwarnings("ignore:.*(unknown symbols|reached the limit)")
def test_the_parts_of_a_stream_are_its_text(served):
    """A part may be less than a word, and nothing; what was sent is never taken back."""

    async def talk(client, _):
        for line, expected in zip(LINES, served.translator.translate(LINES), strict=True):
            answer = await client.post("/translate", json={"text": line, "stream": True})
            assert answer.headers["content-type"].startswith("text/event-stream")
            *parts, last = events(answer.text)
            assert last["text"] == expected.text and last["cut"] == expected.cut
            assert "".join(part["delta"] for part in parts) == expected.text
            assert len(parts) == len(written(served, line).tokens) - 1

    converse(served, talk)


def test_a_stream_of_the_tiny_model_is_greedy_whatever_the_beam(model):
    greedy = Translator(
        model.translator.config,
        model.translator.vocabularies,
        model.translator.params,
        replace(model.translator.decode, beam_size=1),
    )
    lines = ["ant bee cat", "dog", "eel fox gnu hen"]
    assert model.beam_size == 2
    for line, expected in zip(lines, greedy.translate(lines), strict=True):
        assert written(model, line).hypothesis().text == expected.text


def test_a_stream_that_takes_too_long_says_so_and_ends(model, monkeypatch):
    advance = Stream.advance
    monkeypatch.setattr(Stream, "advance", lambda stream: time.sleep(0.3) or advance(stream))

    async def talk(client, service):
        answer = await client.post("/translate", json={"text": "ant bee cat dog", "stream": True})
        assert events(answer.text)[-1] == {"error": "The end was not reached within 0.5 seconds."}
        assert service.admission.total == 0

    converse(model, talk, timeout=0.5)


def test_a_stream_that_fails_says_so_without_its_traceback(model, monkeypatch, caplog):
    def fail(self):
        raise RuntimeError("a secret of the house")

    monkeypatch.setattr(Stream, "advance", fail)

    async def talk(client, service):
        answer = await client.post("/translate", json={"text": "ant", "stream": True})
        assert events(answer.text) == [{"error": "The server failed to answer; its log says why."}]
        assert "a secret of the house" in caplog.text and service.admission.total == 0

    converse(model, talk)
