"""The body of a request, read and checked; whatever is wrong with it is one message."""

import json
from typing import Any, NamedTuple

from seq2seq_jax.errors import did_you_mean, not_plain, shortened, shown
from seq2seq_jax.serving.limits import Limits
from seq2seq_jax.wording import counted

FIELDS = ("text", "texts", "turns", "num_best", "details", "stream")


class Refusal(Exception):
    """A request that is not answered.

    Attributes:
      status: of HTTP.
      message: says what is wrong and what would be right.
      retry_after: seconds after which the same request may be taken, or None where it never will.
    """

    def __init__(self, status: int, message: str, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.retry_after = status, message, retry_after


class Asked(NamedTuple):
    """What a client wants.

    Attributes:
      lines: to translate, as `Translator.translate` takes them: turns of a dialogue before the line, tabs between.
      alone: whether there is one text, in no list.
      num_best: hypotheses of each, or None for the best in no list.
      details: whether tokens, their log-probabilities and the attention are wanted.
      stream: whether the tokens are wanted one by one.
    """

    lines: tuple[str, ...]
    alone: bool
    num_best: int | None = None
    details: bool = False
    stream: bool = False


def read_request(body: bytes, limits: Limits, *, beam_size: int, context_turns: int, has_tags: bool) -> Asked:
    """Returns what the body of a request asks for.

    Args:
      body: JSON in UTF-8.
      limits: of which the number of texts is looked at here.
      beam_size: most hypotheses that a search finds.
      context_turns: most turns that the model reads before a text.
      has_tags: whether its sources have tags, behind a tab.

    Raises:
      Refusal: 400 where it is no JSON, 422 where it makes no sense.
    """
    asked = _json(body)
    if not isinstance(asked, dict):
        raise Refusal(422, f'The body is a JSON object such as {{"text": "..."}}, got {_kind(asked)}.')
    for name in asked:
        if name not in FIELDS:
            hint = did_you_mean(name, FIELDS) or f" There are {', '.join(FIELDS)}."
            raise Refusal(422, f"Unknown field {shown(name)}.{hint}")
    if ("text" in asked) == ("texts" in asked):
        raise Refusal(422, 'Give "text", a string, or "texts", a list of strings; one of them.')
    alone = "text" in asked
    lines = [_line(asked["text"], "text", context_turns, has_tags)] if alone else _texts(asked["texts"], limits)
    if not alone:
        lines = [_line(line, f"texts[{index}]", context_turns, has_tags) for index, line in enumerate(lines)]
    if (turns := asked.get("turns")) is not None:
        if not alone:
            raise Refusal(422, '"turns" come before one "text"; ask for each of several texts by itself.')
        lines = ["\t".join([*_turns(turns, context_turns), *lines])]
    num_best = _num_best(asked.get("num_best"), beam_size)
    details, stream = (_flag(asked, name) for name in ("details", "stream"))
    if stream and (not alone or num_best is not None or details):
        raise Refusal(422, '"stream" gives the tokens of one "text", by greedy search, without num_best and details.')
    return Asked(tuple(lines), alone, num_best, details, stream)


def _json(body: bytes) -> Any:
    try:
        return json.loads(body.decode(), parse_constant=_no_constant, object_pairs_hook=_object)
    except UnicodeDecodeError as error:
        where = f"byte {body[error.start]:#04x} at {error.start:,}"
        raise Refusal(400, f"The body is not UTF-8 ({where}).") from None
    except RecursionError:
        raise Refusal(400, "The body is not JSON that can be read: it is nested too deeply.") from None
    except ValueError as error:
        raise Refusal(400, f"The body is not JSON: {shortened(str(error))}.") from None


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the field {shown(twice)} is there twice")
    return found


def _texts(texts: Any, limits: Limits) -> list[Any]:
    if not isinstance(texts, list):
        raise Refusal(422, f"texts must be a list of strings, got {_kind(texts)}.")
    if not texts:
        raise Refusal(422, "texts is empty.")
    if len(texts) > limits.max_texts:
        most = counted(limits.max_texts, "text")
        raise Refusal(422, f"A request has at most {most}, got {len(texts):,}; send them in several requests.")
    return texts


def _turns(turns: Any, context_turns: int) -> list[str]:
    if not context_turns:
        raise Refusal(422, "turns are of a dialogue, and this model was trained without; leave them out.")
    if not isinstance(turns, list):
        raise Refusal(422, f"turns must be a list of strings, got {_kind(turns)}.")
    if len(turns) > context_turns:
        most = counted(context_turns, "turn")
        raise Refusal(422, f"This model reads {most} before a text, got {len(turns):,}; leave out the oldest.")
    return [_line(turn, f"turns[{index}]", context_turns, False) for index, turn in enumerate(turns)]


def _line(text: Any, name: str, context_turns: int, has_tags: bool) -> str:
    """Returns a text that is one line."""
    if not isinstance(text, str):
        raise Refusal(422, f"{name} must be a string, got {_kind(text)}.")
    if flaw := not_plain(text):
        raise Refusal(422, f"{name} {flaw}.")
    if "\n" in text:
        raise Refusal(422, f'{name} has more than one line; send its lines as "texts".')
    if context_turns and "\t" in text:
        raise Refusal(422, f'{name} has a tab, which stands between turns; send the turns before it as "turns".')
    spoken = text.rpartition("\t")[0] if has_tags and "\t" in text else text
    if name == "text" and not spoken.strip():
        raise Refusal(422, "text is empty.")
    return text


def _num_best(value: Any, beam_size: int) -> int | None:
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool):
        raise Refusal(422, f"num_best must be a whole number, got {_kind(value)}.")
    if not 1 <= value <= beam_size:
        most = f"from 1 to {beam_size}, the size of the beam" if beam_size > 1 else "1, for the search is greedy"
        raise Refusal(422, f"num_best must be {most}; got {shown(value)}.")
    return value


def _flag(asked: dict[str, Any], name: str) -> bool:
    value = asked.get(name, False)
    if not isinstance(value, bool):
        raise Refusal(422, f"{name} must be true or false, got {_kind(value)}.")
    return value


def _kind(value: Any) -> str:
    """Returns what a value of JSON is, in JSON's words."""
    if isinstance(value, bool | None):
        return {True: "true", False: "false", None: "null"}[value]
    kinds = {dict: "an object", list: "a list", str: "a string", int: "a number", float: "a number"}
    return kinds[type(value)]
