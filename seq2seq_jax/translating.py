"""What the command `translate` reads and writes: lines with what is asked beside them, answers, a prompt."""

import contextlib
import itertools
import sys
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from seq2seq_jax import console, text_files
from seq2seq_jax.errors import UserError
from seq2seq_jax.options import TranslateArguments
from seq2seq_jax.run_directory import read_config
from seq2seq_jax.wording import counted

if TYPE_CHECKING:
    from seq2seq_jax.translator import Translator


class Question(NamedTuple):
    """Some lines to translate, and what is asked of their outputs."""

    lines: list[str]
    first_line: int
    prefixes: list[str] | None = None
    required: list[list[str]] | None = None


class Answer(NamedTuple):
    """What becomes of a line: the text of the best hypothesis, the lines to write, and its word alignment."""

    best: str
    lines: list[str]
    alignment: str = ""


@contextlib.contextmanager
def questions_and_output(
    arguments: TranslateArguments,
) -> Generator[tuple[Iterator[Question], Callable[[list[Answer]], None]]]:
    """The lines to translate, as they arrive, and what writes the answers."""
    beside = {name: (path, list(text_files.read_lines(path))) for name, path in arguments.side_files.items()}
    with contextlib.ExitStack() as stack:
        source = stack.enter_context(text_files.open_input(arguments.input))
        target = stack.enter_context(text_files.open_output(arguments.output))
        text_files.check_apart(source, target, arguments.output)
        links = None
        if arguments.alignments is not None:
            links = stack.enter_context(text_files.open_output(arguments.alignments))
            text_files.check_apart(source, links, arguments.alignments)

        def write(answers: list[Answer]) -> None:
            target.write("".join(f"{text}\n" for answer in answers for text in answer.lines).encode())
            target.flush()
            if links is not None:
                links.write("".join(f"{answer.alignment}\n" for answer in answers).encode())

        name = str(arguments.input or "standard input")
        yield _questions(text_files.chunks(source, name), name, beside), write


def _questions(
    chunks: Iterator[list[str]], name: str, beside: Mapping[str, tuple[Path, list[str]]]
) -> Iterator[Question]:
    """Lines with those that stand beside them in other files; UserError where there are fewer or more of these."""
    number = 0
    for lines in chunks:
        given = {}
        for option, (path, texts) in beside.items():
            given[option] = texts[number : number + len(lines)]
            if len(given[option]) < len(lines):
                raise UserError(f"{path} has {counted(len(texts), 'line')}, and {name} more; it needs a line for each.")
        if "required" in given:
            given["required"] = [[each for each in line.split("\t") if each] for line in given["required"]]
        yield Question(lines, number + 1, **given)
        number += len(lines)
    for path, texts in beside.values():
        if len(texts) > number:
            raise UserError(
                f"{path} has {counted(len(texts), 'line')}, and {name} {number:,}; it needs a line for each."
            )


def context_turns(arguments: TranslateArguments, run: Path, atprompt: bool) -> int:
    """Turns that the prompt reads before a line; UserError where it cannot be as many."""
    wanted, trained = arguments.context_turns, read_config(run).data.context_turns
    if wanted is None:
        return trained
    if not atprompt:
        raise UserError(
            f"--context-turns {wanted} is of the prompt at a terminal; a line of a file holds its turns itself, the"
            " oldest first and tabs between. Leave it out."
        )
    if not 0 <= wanted <= trained:
        choice = f"use 0 to {trained}" if trained else "leave it out"
        raise UserError(f"--context-turns {wanted}: {run} was trained with data.context_turns {trained}; {choice}.")
    return wanted


def answering(
    arguments: TranslateArguments, model: "Translator", scorer: "Translator | None"
) -> Callable[[Question], list[Answer]]:
    """What a model makes of lines; `scorer` puts what its beam finds into another order, where there is one."""
    from seq2seq_jax.answers import answer_lines, pharaoh
    from seq2seq_jax.data.progress import progress_bar

    ranked = arguments.num_best is not None
    form = arguments.format or ("tsv" if ranked else "text")
    if arguments.alignments is not None:
        model.check_attention("--alignments")
    details = form == "json" or arguments.alignments is not None
    num_best = arguments.decode.beam_size if scorer else arguments.num_best

    def translate(question: Question) -> list[Answer]:
        lines, first, prefixes, required = question
        asked: dict[str, Any] = dict(details=details, prefixes=prefixes, required=required, first_line=first)
        with progress_bar() as progress:
            if num_best is None:
                found = [[best] for best in model.translate(lines, progress=progress, **asked)]
            else:
                found = model.translate(lines, num_best=num_best, progress=progress, **asked)
        if scorer:
            from seq2seq_jax.reranking import rerank

            found = rerank(scorer, lines, found, arguments.rerank_weight, arguments.decode.length_penalty)
        answers = []
        for number, all_of_line in enumerate(found, first):
            of_line = all_of_line[: arguments.num_best or 1]
            alignment = pharaoh(model.vocabularies, of_line[0]) if arguments.alignments else ""
            answers.append(Answer(of_line[0].text, answer_lines(form, number, of_line, ranked=ranked), alignment))
        return answers

    return translate


def prompt(translate: Callable[[Question], list[Answer]], context_turns: int) -> None:
    """Translates what is typed, line by line, until the end of input. The answers are UTF-8 if they go to a file.

    Before a line are read the last `context_turns` of what was typed and answered
    since the beginning or an empty line.
    """
    if context_turns:
        turns = counted(context_turns, "turn")
        print(
            f"A line is read after the last {turns}; an empty one begins a new dialogue. Ctrl-D ends.", file=sys.stderr
        )
    else:
        print("A sentence a line; Ctrl-D ends.", file=sys.stderr)
    watched, before = console.is_terminal(sys.stdout), deque[str](maxlen=context_turns)
    with text_files.open_output(None) as file:
        for number in itertools.count(1):
            try:
                line = console.typed(input("> " if watched else ""))
            except EOFError:
                print(file=sys.stderr)
                return
            except UnicodeDecodeError as error:
                console.complain(str(text_files.refusal(error.object, "standard input", number)))
                continue
            said = line.replace("\t", " ") if context_turns else line
            if not said.strip():
                before.clear()
            (answer,) = translate(Question(["\t".join([*before, said])], number))
            if said.strip():
                before += [said, answer.best]
            for text in answer.lines:
                if watched:
                    print(console.harmless(text), flush=True)
                else:
                    file.write(f"{text}\n".encode())
                    file.flush()
