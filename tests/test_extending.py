"""What docs/extending.md shows is run."""

import re

import pytest


def programs(text: str) -> list[str]:
    """The Python of the page; a block that is "continued" goes on from the one before."""
    found: list[str] = []
    for continued, block in re.findall(r"^```python( continued)?\n(.*?)^```", text, re.M | re.S):
        if continued:
            found[-1] += block
        else:
            found.append(block)
    return found


@pytest.fixture
def page(repository) -> str:
    return (repository / "docs" / "extending.md").read_text()


@pytest.mark.parametrize("number", [0, 1], ids=["a step", "a cell, a score and a decoder"])
def test_what_the_page_shows_runs(page, number):
    found = programs(page)
    assert len(found) == 2 and all("assert" in program for program in found)
    exec(compile(found[number], "docs/extending.md", "exec"), {"__name__": "extending"})


@pytest.mark.parametrize("name", ["MinimalGatedUnit", "Distance", "Summary"])
def test_a_part_of_ones_own_is_short(page, name):
    (body,) = re.findall(rf"^class {name}\(.*?(?=^\S(?<!class))", page, re.M | re.S)
    assert 0 < len(body.strip().splitlines()) < 40
