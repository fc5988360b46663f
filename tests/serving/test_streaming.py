"""Greedy search by steps, against the one that is a single program, on models of random weights: they write anything."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from seq2seq_jax.build import abstract_params
from seq2seq_jax.config import Config, DataConfig, DecodeConfig, ModelConfig
from seq2seq_jax.data.vocabulary import build_vocabularies
from seq2seq_jax.ensemble import together
from seq2seq_jax.serving.model import Model
from seq2seq_jax.serving.streaming import Stream
from seq2seq_jax.symbols import EOS
from seq2seq_jax.translator import Translator, vocab_sizes
from tests.serving.clients import converse, events

SOURCES = ["der Hund läuft ▁ schnell", "ein  Hund und eine Katze", "Katze"] * 3
TARGETS = ["the dog runs ▁ fast", "a dog and a cat", "cat"] * 3
LINES = ["der Hund", "eine Katze läuft und läuft", "schnell", "ein Zebra 17 ▁▁ läuft", "Katze und Emu und Emu"]
CASES = {
    "unigram": {"data": {"vocabulary": "unigram", "vocab_size": 30, "joint_vocabulary": True}},
    "bpe": {"data": {"vocabulary": "bpe", "vocab_size": 40, "lowercase": True, "joint_vocabulary": True}},
    "characters": {"data": {"vocabulary": "characters"}},
    "words": {"data": {"vocabulary": "words"}},
    "copied words": {"data": {"vocabulary": "words", "joint_vocabulary": True}, "model": {"copy": True}},
    "copied pieces": {
        "data": {"vocabulary": "bpe", "vocab_size": 40, "joint_vocabulary": True},
        "model": {"copy": True},
    },
    "no attention": {
        "data": {"vocabulary": "words"},
        "model": {"attention": "none", "decoder": "plain", "output": "linear"},
    },
}


class Pairs:
    def __len__(self):
        return len(SOURCES)

    def read(self, start, stop):
        return SOURCES[start:stop], TARGETS[start:stop]


def translator(*, data: dict, model: dict | None = None, seeds: tuple[int, ...] = (0,)) -> Translator:
    """A greedy one of random weights; an ensemble where there are several seeds."""
    settings = {"input_feeding": False} if model and model.get("attention") == "none" else {}
    config = Config(
        model=ModelConfig(hidden_size=8, embed_size=8, **settings, **(model or {})),
        data=DataConfig(**{"joint_vocabulary": False} | data),
        decode=DecodeConfig(beam_size=1, length_penalty=0.7),
    )
    vocabularies = build_vocabularies(config.data, Pairs())
    vocabularies = replace(vocabularies, copy=config.model.copy)
    shapes, params = abstract_params(config.model, vocab_sizes(vocabularies)), []
    for seed in seeds:
        draw = np.random.default_rng(seed)
        params.append(jax.tree.map(lambda leaf: draw.uniform(-1, 1, leaf.shape).astype(leaf.dtype), shapes))  # noqa: B023
    if len(seeds) == 1:
        return Translator(config, vocabularies, params[0])
    return Translator(config, vocabularies, together(params), ensemble=[config.model] * len(seeds))


def written(model: Model, line: str) -> Stream:
    stream = model.stream(line, int(model.encode([line]).lengths[0]))
    while not stream.done:
        stream.advance()
    return stream


def served(translator: Translator) -> Model:
    model = Model(translator, max_tokens=40)
    for kind in ("best", "stream"):
        model.programs._add(kind, model.programs._planned[kind][0])
    return model


@pytest.mark.filterwarnings("ignore:.*(unknown symbols|reached the limit)")
@pytest.mark.parametrize("seeds", [(0,), (1,), (2, 3)], ids=str)
@pytest.mark.parametrize("case", CASES)
def test_what_is_written_token_by_token_is_what_greedy_search_finds(case, seeds):
    model = served(translator(**CASES[case], seeds=seeds))
    ended = 0
    for line, expected in zip(LINES, model.translator.translate(LINES), strict=True):
        found = written(model, line)
        assert found.hypothesis().text == expected.text
        assert found.hypothesis().cut == expected.cut
        assert found.hypothesis().score == pytest.approx(expected.score, rel=1e-4)
        assert found.tokens[-1] == EOS
        ended += not expected.cut
    assert len({each.text for each in model.translator.translate(LINES)}) > 1


@pytest.mark.filterwarnings("ignore:.*(unknown symbols|reached the limit)")
@pytest.mark.parametrize("case", CASES)
def test_the_parts_of_a_stream_are_its_text(case):
    """Cut into pieces of words, a text grows by parts that need not be words; what a part adds is never taken back."""
    model = served(translator(**CASES[case]))

    async def talk(client, _):
        for line, expected in zip(LINES, model.translator.translate(LINES), strict=True):
            answer = await client.post("/translate", json={"text": line, "stream": True})
            assert answer.headers["content-type"].startswith("text/event-stream")
            *parts, last = events(answer.text)
            assert last["text"] == expected.text and last["cut"] == expected.cut
            assert "".join(part["delta"] for part in parts) == expected.text
            assert len(parts) == len(written(model, line).tokens) - 1

    converse(model, talk)


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
    monkeypatch.setattr(Stream, "done", False)

    async def talk(client, service):
        answer = await client.post("/translate", json={"text": "ant", "stream": True})
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
