"""What a service refuses for what it says, in one message; and the next request is answered."""

import json

import pytest

from tests.serving.clients import converse

JSON = {"Content-Type": "application/json"}
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
