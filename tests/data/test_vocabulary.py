import gzip
import json
import pickle
import re
from collections import Counter
from typing import Any

import hypothesis
import hypothesis.strategies
import numpy as np
import pytest
import sentencepiece

import seq2seq_jax.data.vocabulary as module
from seq2seq_jax.config import DataConfig
from seq2seq_jax.data.vocabulary import (
    BOS,
    EOS,
    PAD,
    UNK,
    UNKNOWN_TEXT,
    Vocabulary,
    _fingerprint,
    build_vocabularies,
    load_vocabularies,
    save_vocabularies,
)
from seq2seq_jax.errors import UserError
from tests.data.pairs import Pairs, toy_pairs

# Sizes that 400 toy sentences support.
SIZES = {"unigram": 70, "bpe": 70, "words": 50, "characters": 30}
KINDS = pytest.mark.parametrize("kind", SIZES)


def build(kind, pairs=None, **changes):
    settings: dict[str, Any] = {"vocab_size": SIZES[kind], **changes}
    return build_vocabularies(DataConfig(vocabulary=kind, **settings), pairs or toy_pairs(400))


@KINDS
def test_decoding_undoes_encoding(kind):
    lines = toy_pairs(400).sources
    vocabulary = build(kind, vocab_size=64 if kind == "words" else SIZES[kind]).source
    ids = vocabulary.encode(lines)
    assert vocabulary.decode(ids) == lines
    assert all(row.dtype == np.int32 and row.min() > UNK and row.max() < vocabulary.size for row in ids)


@KINDS
def test_decoding_stops_at_the_end_and_drops_special_ids(kind):
    vocabulary = build(kind).source
    (ids,) = vocabulary.encode(["ba do"])
    row = [BOS, *ids.tolist(), EOS, *ids.tolist(), PAD]
    assert vocabulary.decode([row, np.array(row), [EOS], []]) == [vocabulary.decode([ids])[0]] * 2 + ["", ""]


@KINDS
def test_an_unknown_character_is_shown_as_unknown(kind):
    vocabulary = build(kind).source
    (ids,) = vocabulary.encode(["字"])
    assert UNK in ids
    assert vocabulary.decode([ids]) == [UNKNOWN_TEXT]


@KINDS
def test_text_that_looks_special_gives_no_special_id(kind):
    lines = ["<s> </s> <pad> <unk>"] * 4
    vocabulary = build(kind, Pairs(lines, lines), vocab_size=16).source
    (ids,) = vocabulary.encode(lines[:1])
    assert ids.min() > UNK
    assert vocabulary.decode([ids]) == lines[:1]


@KINDS
def test_an_empty_line_has_no_ids(kind):
    vocabulary = build(kind).source
    assert [row.tolist() for row in vocabulary.encode(["", "", ""])] == [[], [], []]
    assert vocabulary.encode([]) == []
    assert vocabulary.decode([[]]) == [""]


@pytest.mark.parametrize("kind", ["unigram", "bpe", "words"])
def test_white_space_is_one_blank(kind):
    vocabulary = build(kind).source
    plain, spaced = vocabulary.encode(["ba do ke", " ba \t do\r  ke\t"])
    assert plain.tolist() == spaced.tolist()


def test_characters_keep_all_white_space():
    lines = ["a  b", "\ta ", "b\n"]
    vocabulary = build("characters", Pairs(lines, lines)).source
    assert vocabulary.decode(vocabulary.encode(lines)) == lines


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_no_sentencepiece_mark_reaches_the_text(kind):
    vocabulary = build(kind).source
    every_id = [[index] for index in range(vocabulary.size)] + [list(range(UNK, vocabulary.size))]
    assert not any("\u2581" in text for text in vocabulary.decode(every_id))


@KINDS
def test_text_is_not_normalised(kind):
    lines = ["\ufb01 \u00bd \u212b A\u030a \uff21 x\u00a0y\u3000z"] * 5  # all of which NFKC would change
    vocabulary = build(kind, Pairs(lines, lines), vocab_size=16).source
    assert vocabulary.decode(vocabulary.encode(lines)) == lines


@KINDS
@hypothesis.given(hypothesis.strategies.lists(hypothesis.strategies.text(max_size=30), min_size=1, max_size=6))
@hypothesis.example(["\0\x1f\u2581 \u2581\u2585 a\u2581", "\u2047\u2585"])
@hypothesis.example(["\ufdd0\ufdd4\u2585\ufdd4", "\ufdd4", "\ufdd4\ufdd0 \ufdd4 \ufdd1\u2581"])
@hypothesis.example(["\x1d\x1e\x85\u2028", "\ufeffa\ufffd\U0010ffff"])
@hypothesis.settings(max_examples=25, deadline=None, database=None, derandomize=True)
def test_every_character_of_unicode_is_learned_and_given_back(kind, lines):
    try:
        vocabulary = build(kind, Pairs(lines, lines), vocab_size=2_000).source
    except UserError as refused:  # the sizes that so little text supports are told
        if "no text" in str(refused):
            return
        size = int(str(refused).split(" use ")[1].split()[0])
        vocabulary = build(kind, Pairs(lines, lines), vocab_size=size).source
    ids = vocabulary.encode(lines)
    assert not any(UNK in row for row in ids)
    expected = lines if kind == "characters" else [re.sub("[ \t\n\r\f\v]+", " ", line).strip(" ") for line in lines]
    assert vocabulary.decode(ids) == expected


@KINDS
def test_whatever_ids_come_only_characters_of_the_text_are_written(kind):
    vocabulary = build(kind, Pairs(["\u2581\u2585 a \x1f"] * 4, ["a\u2585"] * 4), vocab_size=10).source
    every_row = [[first, second] for first in range(vocabulary.size) for second in range(vocabulary.size)]
    allowed = set("\u2581\u2585 a\x1f" + UNKNOWN_TEXT)
    assert set("".join(vocabulary.decode(every_row))) <= allowed


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_an_unseen_character_of_sentencepieces_own_is_unknown(kind):
    vocabulary = build(kind).source
    for text in ("\u2581", "\u2585", "\0", "\x1f"):
        assert vocabulary.decode(vocabulary.encode([f"ba{text}do"])) == [f"ba{UNKNOWN_TEXT}do"]


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_sentencepiece_learns_of_long_words_and_lines_in_parts_and_of_every_character(kind, monkeypatch):
    word = "ab" * 14_000 + "z"
    handed = []
    real = sentencepiece.SentencePieceTrainer.train

    def train(*, sentence_iterator, **options):
        handed.extend(sentence_iterator)
        real(sentence_iterator=iter(handed), **options)

    monkeypatch.setattr(sentencepiece.SentencePieceTrainer, "train", train)
    vocabulary = build(kind, Pairs([f"ab {word} ab"] * 2, ["ba"] * 2), vocab_size=9, joint_vocabulary=False).source
    assert max(len(part) for line in handed for part in line.split(" ")) == 1_000
    assert max(map(len, handed)) <= 20_000
    assert "".join(handed).replace(" ", "") == f"ab{word}ab" * 2 + "baba"
    assert vocabulary.decode(vocabulary.encode([word])) == [word]


@KINDS
def test_lowercase_makes_case_vanish(kind):
    pairs = Pairs(["Ba DO Ä"] * 9, ["ba do ä"] * 9)
    vocabulary = build(kind, pairs, lowercase=True, vocab_size=10).source
    upper, lower = vocabulary.encode(["BA Do Ä", "ba do ä"])
    assert upper.tolist() == lower.tolist()
    assert vocabulary.decode([upper]) == ["ba do ä"]


@KINDS
def test_joint_is_one_object_and_separate_are_two(kind):
    pairs = toy_pairs(400)
    other = Pairs(pairs.sources, [line.upper() for line in pairs.targets])
    joint = build(kind, other)
    separate = build(kind, other, joint_vocabulary=False)
    assert joint.joint and joint.source is joint.target
    assert not separate.joint
    assert separate.target.fingerprint != separate.source.fingerprint != joint.source.fingerprint
    assert separate.source.fingerprint == build(kind, Pairs(pairs.sources, pairs.sources)).source.fingerprint or (
        kind in ("unigram", "bpe")  # twice the text, other counts: pieces may differ
    )


@KINDS
def test_building_is_deterministic(kind):
    first, second = build(kind), build(kind)
    assert first.source.fingerprint == second.source.fingerprint
    assert build(kind, lowercase=True).source.fingerprint != first.source.fingerprint


def test_words_are_cut_by_frequency_then_size_and_ties_by_text():
    counts = Counter({"c": 5, "b": 3, "a": 3, "d": 2, "e": 1})
    lines = list(counts.elements())
    pairs = Pairs(lines, lines)

    def words(**settings):
        vocabulary = build("words", pairs, joint_vocabulary=False, **settings).source
        return vocabulary.decode([range(UNK + 1, vocabulary.size)])[0].split()

    assert words() == ["c", "a", "b", "d", "e"]
    assert words(min_frequency=2) == ["c", "a", "b", "d"]
    assert words(vocab_size=6) == ["c", "a"]


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_a_size_the_text_does_not_support_is_refused_with_the_largest_that_works(kind):
    with pytest.raises(UserError, match=r"data\.vocab_size 5000 .* use (\d+) or less") as refused:
        build(kind, vocab_size=5000)
    largest = int(str(refused.value).split(" use ")[1].split()[0])
    assert build(kind, vocab_size=largest).source.size == largest


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_a_size_below_the_characters_is_refused_with_the_smallest_that_works(kind):
    with pytest.raises(UserError, match=r"data\.vocab_size 6 is less .* use (\d+) or more") as refused:
        build(kind, vocab_size=6)
    smallest = int(str(refused.value).split(" use ")[1].split()[0])
    assert build(kind, vocab_size=smallest).source.size == smallest


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_a_size_that_neither_side_supports_is_told_of_both_at_once(kind):
    pairs = Pairs(toy_pairs(400).sources, toy_pairs(40).sources * 10)
    with pytest.raises(UserError) as refused:
        build(kind, pairs, vocab_size=5_000, joint_vocabulary=False)
    text = str(refused.value)
    most = {side: int(number) for number, side in re.findall(r"(\d+) or less for the (source|target) side", text)}
    assert len(most) == 2 and f"; use {min(most.values())} or less (" in text
    assert build(kind, pairs, vocab_size=min(most.values()), joint_vocabulary=False).target.size == min(most.values())


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_sides_that_no_size_suits_are_told(kind):
    pairs = Pairs(["abcdefghijklmnopqrstuvwxyz"] * 4, ["xy x"] * 4)
    for size in (5_000, 25):
        with pytest.raises(UserError, match="No value suits both sides .*31 or more for the source side.*joint_voc"):
            build(kind, pairs, vocab_size=size, joint_vocabulary=False)


@pytest.mark.parametrize("kind", ["words", "characters"])
def test_a_frequency_that_leaves_nothing_is_refused_with_the_largest_that_leaves_something(kind):
    pairs = Pairs(["a b b", "b"], ["x x", "x x y"])
    with pytest.raises(UserError, match=r"the source side and the target side .*min_frequency 9; use 3 or less \("):
        build(kind, pairs, min_frequency=9, joint_vocabulary=False)
    assert build(kind, pairs, min_frequency=3, joint_vocabulary=False).source.size == 5
    with pytest.raises(UserError, match=r"of both sides .*min_frequency 7; use [45] or less\.$"):
        build(kind, pairs, min_frequency=7)


@KINDS
@pytest.mark.parametrize("target", SIZES)
def test_each_side_may_have_a_kind_of_its_own(kind, target, tmp_path):
    """Each is the one that it would be if both sides were of its kind."""
    sides = {name: build(name, vocab_size=30, joint_vocabulary=False) for name in (kind, target)}
    built = build(kind, vocab_size=30, joint_vocabulary=False, target_vocabulary=target)
    save_vocabularies(built, tmp_path)
    for vocabularies in (built, load_vocabularies(tmp_path)):
        assert (vocabularies.source.kind, vocabularies.target.kind) == (kind, target)
        assert vocabularies.source.fingerprint == sides[kind].source.fingerprint
        assert vocabularies.target.fingerprint == sides[target].target.fingerprint


def test_letters_are_read_and_phones_of_several_letters_are_written():
    phones = ["AE B K", "t\u0361s a\u02d0 n\u0303"]
    built = build("characters", Pairs(["abc", "tsan"], phones), joint_vocabulary=False, target_vocabulary="words")
    (ids,), targets = built.source.encode(["abc"]), built.target.encode(phones)
    assert [len(ids), *map(len, targets)] == [3, 3, 3] and built.target.decode(targets) == phones


def test_sides_of_different_kinds_are_refused_by_what_is_wrong_with_each():
    """The bounds are of different settings: one message would mix them up."""
    pairs = toy_pairs(400)
    settings = {"joint_vocabulary": False, "target_vocabulary": "bpe", "min_frequency": 100_000}
    with pytest.raises(UserError, match=r"^No character of the source .*data.min_frequency 100000; use \d+ or less\.$"):
        build("characters", pairs, vocab_size=5_000, **settings)
    with pytest.raises(UserError, match=r"^data.vocab_size 5000 is more than the text of the target side supp"):
        build("characters", pairs, vocab_size=5_000, **settings | {"min_frequency": 1})


@KINDS
def test_a_side_without_text_is_refused(kind):
    with pytest.raises(UserError, match="no text on the target side"):
        build(kind, Pairs(toy_pairs(400).sources, [""] * 400), joint_vocabulary=False)


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_a_large_corpus_is_sampled(kind):
    pairs = toy_pairs(20_000)
    sampled = build(kind, pairs, vocabulary_sample=40_000)
    num_reads, pairs.num_reads = pairs.num_reads, 0
    assert num_reads <= 2  # blocks of 1,000 lines, of 20
    assert build(kind, pairs, vocabulary_sample=40_000).source.fingerprint == sampled.source.fingerprint
    assert sampled.source.size == SIZES[kind]


def test_the_sample_never_changes():
    """A stored list on purpose: the same vocabulary on every machine, with any version of NumPy and of this file."""
    pairs = Pairs([str(number) for number in range(25_500)], [""] * 25_500)
    side = module._Side(DataConfig(vocabulary_sample=12_000), pairs, "bpe", (0,))
    sample = list(module._sample(side))
    assert sample[::1_000] == ["2000", "20000", "14000"]
    assert sample == [str(int(first) + number) for first in sample[::1_000] for number in range(1_000)]


@KINDS
@pytest.mark.parametrize("joint", [True, False])
def test_saving_and_loading_changes_nothing(kind, joint, tmp_path):
    built = build(kind, joint_vocabulary=joint)
    save_vocabularies(built, tmp_path / "vocabulary")
    loaded = load_vocabularies(tmp_path / "vocabulary")
    lines = [*toy_pairs(50, seed=1).sources, "字 x", ""]
    assert loaded.joint == joint
    for old, new in ((built.source, loaded.source), (built.target, loaded.target)):
        assert (new.kind, new.size, new.fingerprint) == (kind, old.size, old.fingerprint)
        assert [row.tolist() for row in new.encode(lines)] == [row.tolist() for row in old.encode(lines)]
    assert not list(tmp_path.rglob("*partial*"))


def test_lowercasing_is_saved(tmp_path):
    build("words", lowercase=True).source.save(tmp_path, "v")
    (ids,) = Vocabulary.load(tmp_path, "v").encode(["BA"])
    assert UNK not in ids


def test_the_vocabularies_saved_last_count(tmp_path):
    for joint in (True, False, True):
        save_vocabularies(build("words", joint_vocabulary=joint), tmp_path)
        assert load_vocabularies(tmp_path).joint == joint


@KINDS
def test_it_survives_pickling(kind):
    vocabulary = build(kind).source
    copy = pickle.loads(pickle.dumps(vocabulary))
    assert [row.tolist() for row in copy.encode(["ba do"])] == [row.tolist() for row in vocabulary.encode(["ba do"])]


def test_a_missing_vocabulary_is_refused(tmp_path):
    with pytest.raises(UserError, match="no vocabulary in .*nowhere"):
        load_vocabularies(tmp_path / "nowhere")


@pytest.mark.parametrize("model", [b"", b"x", b"\x80\x04N.", b"\0" * 999], ids=["empty", "letter", "pickle", "zeros"])
def test_a_sentencepiece_model_of_anything_is_refused_though_its_hash_is_right(model, tmp_path):
    head = {"kind": "bpe", "lowercase": False, "fingerprint": _fingerprint("bpe", False, model)}
    (tmp_path / "joint.json").write_text(json.dumps(head))
    (tmp_path / "joint.model").write_bytes(model)
    with pytest.raises(UserError, match="joint.model is damaged"):
        load_vocabularies(tmp_path)


@KINDS
def test_a_missing_or_damaged_file_is_refused_by_name(kind, tmp_path):
    save_vocabularies(build(kind), tmp_path)
    for path in sorted(tmp_path.iterdir()):
        whole = path.read_bytes()
        for damaged in (b"", whole[: len(whole) // 2], b"\xff\x00" + whole, b"[]"):
            path.write_bytes(damaged)
            with pytest.raises(UserError, match=rf"{path.name} is damaged"):
                load_vocabularies(tmp_path)
        path.write_bytes(b"[" * 100_000)
        with pytest.raises(UserError, match=rf"{path.name} is damaged"):
            load_vocabularies(tmp_path)
        path.unlink()
        path.mkdir()
        with pytest.raises(UserError, match=rf"{path.name} cannot be read \(Is a directory\)"):
            load_vocabularies(tmp_path)
        path.rmdir()
        with pytest.raises(UserError, match=rf"{path.name} cannot be read|no vocabulary"):
            load_vocabularies(tmp_path)
        path.write_bytes(whole)
    load_vocabularies(tmp_path)


def test_a_changed_entry_is_noticed(tmp_path):
    save_vocabularies(build("words"), tmp_path)
    path = tmp_path / "joint.txt"
    path.write_text(path.read_text().replace('"ba', '"be'))
    with pytest.raises(UserError, match="differs from what was saved"):
        load_vocabularies(tmp_path)
    head = json.loads((tmp_path / "joint.json").read_text())
    (tmp_path / "joint.json").write_text(json.dumps({**head, "kind": "wordz"}))
    with pytest.raises(UserError, match="joint.json is damaged"):
        load_vocabularies(tmp_path)


@pytest.mark.parametrize("folder, column", [("multi30k-de-en", "de"), ("nl2bash", "bash")])
def test_real_text_survives_but_for_runs_of_blanks(corpora, folder, column):
    with gzip.open(corpora / folder / f"validation.{column}.gz", "rt", encoding="utf-8", newline="\n") as file:
        lines = file.read().split("\n")[:-1]
    vocabulary = build("bpe", Pairs(lines, lines), vocab_size=1000).target
    decoded = vocabulary.decode(vocabulary.encode(lines))
    assert decoded == [" ".join(part for part in re.split("[ \t]", line) if part) for line in lines]


TAGGED = Pairs(["ba do\tV;PST", "ke\tN", "do\tV; SG"], ["do ba", "ke", "do"])


@KINDS
@pytest.mark.parametrize("joint", [True, False])
def test_tags_are_entries_of_their_own_before_the_text(kind, joint, tmp_path):
    text = toy_pairs(400)
    tagged = Pairs([f"{line}\tV;PST" for line in text.sources], text.targets)
    plain = build(kind, text, joint_vocabulary=joint).source
    built = build(kind, tagged, joint_vocabulary=joint, features="tags")
    save_vocabularies(built, tmp_path)
    for vocabularies in (built, load_vocabularies(tmp_path)):
        vocabulary = vocabularies.source
        assert vocabularies.joint == joint
        assert (vocabulary.size, vocabulary.num_tags) == (plain.size + 3, 3)  # the third is the unknown tag
        assert vocabularies.target.num_tags == (3 if joint else 0)
        for line in [*text.sources[:5], "", "字"]:
            (own,), (expected,) = vocabulary.encode_sources([f"{line}\tPST;V;NEW"]), plain.encode([line])
            tags = [plain.size + 1, plain.size + 2, plain.size]  # as frequent as each other, so by their text
            assert own.tolist() == [*tags, *expected.tolist()]
            assert vocabulary.encode([line])[0].tolist() == expected.tolist()


def test_the_most_frequent_tag_is_first_and_blanks_around_tags_are_none_of_them():
    vocabulary = build("words", TAGGED, features="tags").source
    rows = vocabulary.encode_sources(["\tV;N;PST;SG", "\t V ;;", "", "ba\tdo\t"])
    first = vocabulary.size - 4
    assert [row.tolist() for row in rows[:3]] == [[first, first + 1, first + 2, first + 3], [first], []]
    assert rows[3].tolist() == vocabulary.encode(["ba do"])[0].tolist()


def test_a_tag_that_a_model_writes_is_no_text():
    vocabulary = build("words", TAGGED, features="tags").target
    assert vocabulary.decode([[vocabulary.size - 1]]) == [UNKNOWN_TEXT]


def test_a_source_without_its_tags_is_refused():
    vocabulary = build("words", TAGGED, features="tags").source
    with pytest.raises(UserError, match=r"The source 'ba do' has no tab and tags behind it.*SOURCE<tab>TAG;TAG"):
        vocabulary.encode_sources(["ke\tN", "ba do"])


def test_sources_of_which_none_has_a_tag_are_refused():
    with pytest.raises(UserError, match=r"data\.features tags: no source of the training split has a tag"):
        build("words", Pairs(["ba\t", "do\t"], ["x", "y"]), features="tags")


def in_dialogues(text: Pairs) -> Pairs:
    """The same sources with the two before them."""
    sources = ["\t".join(text.sources[max(0, index - 2) : index + 1]) for index in range(len(text))]
    return Pairs(sources, text.targets)


@KINDS
def test_turns_are_joined_by_an_entry_of_its_own(kind, tmp_path):
    text = toy_pairs(400)
    plain = build(kind, text).source
    built = build(kind, in_dialogues(text), turns="turn", context_turns=2)
    save_vocabularies(built, tmp_path)
    for vocabularies in (built, load_vocabularies(tmp_path)):
        vocabulary = vocabularies.source
        assert vocabularies.joint
        assert vocabulary.entry_ids() == plain.entry_ids()  # as without turns: the text of each is counted once
        assert (vocabulary.size, vocabulary.num_tags, vocabulary.left_out) == (plain.size + 2, 2, (plain.size + 1,))
        for turns in (text.sources[:3], text.sources[:2], text.sources[:1], ["ba", "", "字"], [""]):
            (own,), parts = vocabulary.encode_sources(["\t".join(turns)]), plain.encode(turns)
            expected = [index for part in parts for index in (*part.tolist(), plain.size)][:-1]
            assert own.tolist() == expected
            tokens = vocabulary.source_tokens("\t".join(turns))
            assert len(tokens) == len(own)
            assert [token == "\t" for token in tokens] == (own == plain.size).tolist()
        assert vocabulary.decode([[*own, plain.size, plain.size + 1]]) == [plain.decode([[*own, UNK, UNK]])[0]]
        assert built.source.fingerprint == vocabulary.fingerprint


def test_the_oldest_turns_are_left_out_until_a_source_fits():
    """Against all ways to leave some of the oldest out, by hand."""
    random = np.random.default_rng(0)
    pairs = Pairs(["a b c d e f"], ["a"])
    for _ in range(300):
        most, limit = int(random.integers(1, 5)), int(random.integers(2, 14))
        turns = [" ".join(random.choice(list("abcdef"), random.integers(0, 6))) for _ in range(most + 1)]
        vocabulary = build("words", pairs, turns="turn", context_turns=most, max_length=limit).source
        plain = build("words", pairs).source
        ways = []
        for first in range(len(turns)):
            joined = f" {plain.size} ".join(" ".join(map(str, row)) for row in plain.encode(turns[first:]))
            ways.append([plain.size + 1] * bool(first) + [int(number) for number in joined.split()])
        expected = next((way for way in ways if len(way) + 1 <= limit), ways[-1])
        assert vocabulary.encode_sources(["\t".join(turns)])[0].tolist() == expected


def test_more_turns_than_were_learnt_are_refused():
    vocabulary = build("words", in_dialogues(toy_pairs(400)), turns="turn", context_turns=2).source
    with pytest.raises(
        UserError, match=r"The source 'a.*' has 4 turns, .* reads 3 \(data.context_turns and the source"
    ):
        vocabulary.encode_sources(["a\tb\tc", "a\tb\tc\td"])
