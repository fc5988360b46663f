from seq2seq_jax.wording import counted, duration, figures, megabytes, part_of


def test_a_number_has_its_noun_in_the_right_form():
    assert [counted(n, "pair") for n in (0, 1, 2, 12_345)] == ["0 pairs", "1 pair", "2 pairs", "12,345 pairs"]
    assert [counted(n, "entry", "entries") for n in (1, 2)] == ["1 entry", "2 entries"]


def test_some_of_many_have_the_right_verb():
    assert part_of(1, 1, "target") == "1 of 1 target is"
    assert part_of(2, 1_040, "target") == "2 of 1,040 targets are"


def test_three_figures_say_how_large_a_number_is_and_no_digit_of_its_whole_part_is_lost():
    assert [figures(n) for n in (0.0015649, 9.996, 99.94, 100, 23_850.4)] == ["0.00156", "10", "99.9", "100", "23,850"]
    assert megabytes(3_390_876) == "3.39" and megabytes(23_850_400_000) == "23,850"


def test_a_duration_is_said_in_the_two_units_that_matter():
    assert [duration(s) for s in (0.4, 59.4, 59.6, 99)] == ["0 s", "59 s", "1 min 0 s", "1 min 39 s"]
    assert [duration(s) for s in (3_599, 3_600, 3_600_300)] == ["59 min 59 s", "1 h 0 min", "1,000 h 5 min"]
