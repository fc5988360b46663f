from seq2seq_jax.wording import counted, part_of


def test_a_number_has_its_noun_in_the_right_form():
    assert [counted(n, "pair") for n in (0, 1, 2, 12_345)] == ["0 pairs", "1 pair", "2 pairs", "12,345 pairs"]
    assert [counted(n, "entry", "entries") for n in (1, 2)] == ["1 entry", "2 entries"]


def test_some_of_many_have_the_right_verb():
    assert part_of(1, 1, "target") == "1 of 1 target is"
    assert part_of(2, 1_040, "target") == "2 of 1,040 targets are"
