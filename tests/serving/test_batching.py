"""The queue around a search that is none, and which program a batch takes."""

import asyncio
import random
import threading

import pytest

from seq2seq_jax.serving.batching import Batcher
from seq2seq_jax.serving.programs import Programs, Shape, ladder
from seq2seq_jax.translator import Hypothesis

KINDS = ["best", "stream", "details", "several", "several with details"]


def programs(most_rows: int = 8, widest: int = 100) -> Programs:
    found = Programs(lambda kind, shape: None, KINDS, most_rows, widest)
    found.compile_first(lambda: None)
    return found


class Search:
    """Upper case; waits for `go` where it is given, and remembers its batches."""

    def __init__(self, go: threading.Event | None = None):
        self.go, self.batches = go, list[tuple[list[str], str, Shape]]()

    def __call__(self, lines, kind, shape):
        self.batches.append((list(lines), kind, shape))
        if self.go is not None:
            assert self.go.wait(10)
        return [[Hypothesis(line.upper(), 0.0)] for line in lines]


def run(talk, search, most_rows: int = 8):
    async def running():
        batcher = Batcher(search, programs(most_rows))
        task = asyncio.create_task(batcher.run())
        try:
            return await talk(batcher)
        finally:
            task.cancel()

    return asyncio.run(running())


def put(batcher, lines, kind="best"):
    return batcher.put(lines, [len(line) + 1 for line in lines], kind)


def test_a_line_alone_is_searched_at_once_and_what_comes_meanwhile_together():
    go = threading.Event()
    search = Search(go)

    async def talk(batcher):
        found = put(batcher, ["first"])
        await asyncio.sleep(0.05)
        for line in ("b", "c", "d"):
            found += put(batcher, [line])
        go.set()
        return [each[0].text for each in await asyncio.gather(*found)]

    assert run(talk, search) == ["FIRST", "B", "C", "D"]
    assert [lines for lines, _, _ in search.batches] == [["first"], ["b", "c", "d"]]


def test_those_who_ask_again_at_once_are_searched_together():
    """Four clients, each of which asks as soon as it has its answer; the pause ends when all are back."""
    search = Search()

    async def talk(batcher):
        batcher._pause_ends = float("inf")  # whatever the clock says
        batcher._note = lambda *_: setattr(batcher, "_expected", 4)

        async def client(name):
            for _ in range(5):
                await asyncio.gather(*put(batcher, [name]))

        batcher._expected = 4
        await asyncio.gather(*map(client, "abcd"))

    run(talk, search)
    assert [len(lines) for lines, _, _ in search.batches] == [4] * 5


def test_one_client_alone_is_never_kept_waiting():
    search = Search()

    async def talk(batcher):
        for number in range(3):
            await asyncio.gather(*put(batcher, [str(number)]))
            assert batcher._expected == 0

    run(talk, search)


def test_lines_of_similar_length_go_together_and_none_is_passed_over_for_long():
    """Whatever comes: the line that has waited longest is in the next batch, in a program that holds all of it."""
    draw = random.Random(0)
    go = threading.Event()
    search = Search(go)

    async def talk(batcher):
        lines = [f"{number} " + "x" * draw.randint(0, 90) for number in range(200)]
        found = put(batcher, ["first"])
        await asyncio.sleep(0.05)
        for line in lines:
            found += put(batcher, [line], draw.choice(["best", "several"]))
        go.set()
        texts = [each[0].text for each in await asyncio.gather(*found)]
        assert texts == [line.upper() for line in ["first", *lines]]

    run(talk, search)
    waiting = list(range(200))
    for lines, kind, shape in search.batches[1:]:
        numbers = [int(line.partition(" ")[0]) for line in lines]
        assert waiting[0] in numbers
        assert len(lines) <= shape.rows == (8 if kind == "best" else 8)
        assert max(map(len, lines)) < shape.width
        waiting = [number for number in waiting if number not in numbers]
    assert not waiting
    spread = [max(map(len, lines)) - min(map(len, lines)) for lines, _, _ in search.batches[1:]]
    assert sorted(spread)[len(spread) // 2] < 20  # of 90, by chance 70


def test_a_batch_is_of_one_kind_and_no_larger_than_its_programs():
    go = threading.Event()
    search = Search(go)

    async def talk(batcher):
        found = put(batcher, ["first"])
        await asyncio.sleep(0.05)
        found += put(batcher, list("abcde"), "details") + put(batcher, list("fghij"), "best")
        go.set()
        await asyncio.gather(*found)

    run(talk, search)
    assert [(kind, len(lines)) for lines, kind, _ in search.batches[1:]] == [
        ("details", 4),
        ("details", 1),
        ("best", 5),
    ]


def test_a_line_that_nobody_waits_for_is_not_searched():
    go = threading.Event()
    search = Search(go)

    async def talk(batcher):
        first, *others = put(batcher, ["first"]) + put(batcher, ["b", "c"])
        await asyncio.sleep(0.05)
        later = put(batcher, ["d", "e"])
        later[0].cancel()
        others[0].cancel()
        go.set()
        await asyncio.gather(first, others[1], later[1])

    run(talk, search, most_rows=1)
    assert [lines for lines, _, _ in search.batches] == [["first"], ["c"], ["e"]]


def test_a_batch_that_fails_fails_alone(caplog):
    def search(lines, kind, shape):
        if "bad" in lines:
            raise ValueError("no")
        return [[Hypothesis(line, 0.0)] for line in lines]

    async def talk(batcher):
        for line, expected in (("bad", ValueError), ("good", list)):
            (found,) = await asyncio.gather(*put(batcher, [line]), return_exceptions=True)
            assert isinstance(found, expected)

    run(talk, search)
    assert "a search failed" in caplog.text


# programs


@pytest.mark.parametrize("most, expected", [(1, [1]), (4, [1, 2, 4]), (5, [1, 2, 4, 5]), (16, [1, 2, 4, 8, 16])])
def test_a_ladder_ends_with_the_most(most, expected):
    assert ladder(1, most) == expected


def test_the_first_program_of_each_kind_fits_every_request():
    found = programs(most_rows=32)
    assert found.num_compiled == len(KINDS)
    for kind in KINDS:
        shape = found.fitting(kind, found.most_rows(kind), 100)
        assert shape == found.fitting(kind, 1, 1) == Shape(found.most_rows(kind), 100)
    assert [found.most_rows(kind) for kind in KINDS] == [32, 1, 4, 32, 4]


def test_a_batch_takes_the_smallest_program_that_is_there():
    made = list[tuple[str, Shape]]()
    found = Programs(lambda *program: made.append(program), KINDS, 32, 100)
    found.compile_first(lambda: None)
    found.compile_rest(threading.Event())
    assert found.num_compiled == found.num_planned == len(made) == len(set(made))
    assert found.fitting("best", 1, 3) == Shape(1, 16)
    assert found.fitting("best", 3, 16) == Shape(4, 16)
    assert found.fitting("best", 17, 17) == Shape(32, 32)
    assert found.fitting("several", 5, 90) == Shape(32, 100)


def test_rows_are_shared_by_the_devices():
    found = Programs(lambda *_: None, KINDS, 30, 16, num_devices=4)
    assert {shape.rows for shapes in found._planned.values() for shape in shapes} == {4, 8, 16, 32}


def test_compiling_ends_between_two_programs_when_the_server_does():
    stop, made = threading.Event(), list[Shape]()

    def compile(kind, shape):
        made.append(shape)
        if len(made) == len(KINDS) + 2:
            stop.set()

    found = Programs(compile, KINDS, 32, 100)
    found.compile_first(lambda: None)
    found.compile_rest(stop)
    assert found.num_compiled == len(made) == len(KINDS) + 2
