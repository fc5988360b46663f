"""A service in this process, on the model of the tiny task: what it answers."""

import asyncio
import re

import numpy as np
import pytest

from tests.serving.clients import ask, converse
from tests.tiny import sentences

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
    assert len(ask(dialogue, {"text": "cat", "num_best": 2})["hypotheses"]) == 2  # of 3 in the beam
    long = ask(dialogue, {"text": "cat", "turns": ["ant bee eel", "dog"], "details": True})
    assert long["warnings"] == ["The oldest turns are left out, to fit what the model reads."]
    assert long["source_tokens"] == ["...", "dog", "|", "cat", "</s>"]


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
