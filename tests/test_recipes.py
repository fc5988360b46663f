"""Every recipe of configs/ builds its model, and reads its data in the form that its source has them.

What is downloaded is made here: a few sentences of our own in files and archives
named and laid out as the published ones are.
"""

import hashlib
import io
import json
import socket
import sys
import tarfile
import zipfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import pytest
import tensorflow_datasets as tfds
from tensorflow_datasets.core.download import checksums, downloader

from seq2seq_jax.build import abstract_params
from seq2seq_jax.config_file import load_config
from seq2seq_jax.data.corpora import load_corpus, published, registered
from seq2seq_jax.data.vocabulary import build_vocabularies
from seq2seq_jax.errors import UserError

CONFIGS = {path.stem: path for path in sorted((Path(__file__).resolve().parents[1] / "configs").glob("*.py"))}
CORPORA = {name: load_config(path).data.corpus for name, path in CONFIGS.items()}
RECIPES = sorted(name for name, corpus in CORPORA.items() if not corpus.startswith(("files:", "scan/", "formal/")))


# ---- models


PARAMETERS = {  # vocabularies, and the parameters that are published
    "iwslt14_de_en": ((32_009, 22_822), 22.05e6),  # JoeyNMT, with the vocabularies of Ranzato et al. 2016
    "gnmt_en_de": ((32_000, 32_000), 278e6),  # Chen et al. 2018
    "rnmt_plus_en_de": ((32_000, 32_000), 378.9e6),  # the same
    "cnn_dailymail": ((50_000, 50_000), 21_499_600),  # See et al. 2017, section 5
}


@pytest.mark.parametrize("name", CONFIGS)
def test_every_model_has_its_shapes_and_the_parameters_that_are_published(name):
    sizes, expected = PARAMETERS.get(name, ((1_000, 900), None))
    config = load_config(CONFIGS[name])
    num_tags = (10,) if config.data.features else ()
    count = sum(param.size for param in jax.tree.leaves(abstract_params(config.model, (*sizes, *num_tags))))
    assert count > 1e5
    if expected:
        assert count == pytest.approx(expected, rel=0.025)


# ---- data as published


WORDS = ("the cat saw a small dog", "a dog ran home", "we saw the old house there", "the old dog saw us")
FOREIGN = ("die katze sah einen kleinen hund", "ein hund lief heim", "wir sahen dort das alte haus", "er sah uns da")
LINES = 48  # of every file: every 23rd of a training text is for validation, and words are seen five times


def text(lines: tuple[str, ...], count: int = LINES) -> bytes:
    return "".join(f"{lines[number % len(lines)]}\n" for number in range(count)).encode()


def packed(files: Mapping[str, bytes]) -> bytes:
    """A .tgz."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def zipped(files: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def table(*rows: str) -> bytes:
    return text(rows)


def segments(lines: tuple[str, ...]) -> bytes:
    """Marked as the test sets of WMT and IWSLT are."""
    body = "".join(f'<seg id="{number}"> {line} </seg>\n' for number, line in enumerate(lines, 1))
    return f'<?xml version="1.0"?>\n<doc docid="1" genre="news">\n<url>http://a</url>\n{body}</doc>\n'.encode()


def iwslt14() -> bytes:
    files = {}
    for language, lines in (("de", FOREIGN), ("en", WORDS)):
        head = f"<url>http://a</url>\n<keywords>a, b</keywords>\n<talkid>1</talkid>\n<title>{lines[0]}</title>\n"
        long = {"de": " ".join(["lang"] * 60), "en": " ".join(["long"] * 50)}[language]
        uneven = {"de": "Eins zwei drei", "en": "One, two"}[language]  # 3 tokens, with the comma
        twice = {"de": "eins zwei drei vier", "en": "one two"}[language]  # left out
        tail = f"{long}\n{twice}\n{uneven}\n{lines[0].capitalize()}, {lines[1]}.\n"
        files[f"de-en/train.tags.de-en.{language}"] = head.encode() + text(lines) + tail.encode()
        for name in ("TED.dev2010", "TEDX.dev2012", "TED.tst2010", "TED.tst2011", "TED.tst2012"):
            files[f"de-en/IWSLT14.{name}.de-en.{language}.xml"] = segments((f"{name}: it’s", *lines))
    return packed(files)


def wmt(name: str) -> bytes:
    sides = {"de": FOREIGN, "en": WORDS}
    if name == "dev.tgz":
        files = {f"dev/newstest2013.{language}": text(lines, 4) for language, lines in sides.items()}
        for year in (2014, 2015, 2016):
            for part, language in (("src", "de"), ("ref", "en")):
                files[f"dev/newstest{year}-deen-{part}.{language}.sgm"] = segments(sides[language]).replace(
                    b'"> ', b'">'
                )
        return packed(files)
    inner = {
        "training-parallel-commoncrawl.tgz": "commoncrawl.de-en",
        "training-parallel-europarl-v7.tgz": "training/europarl-v7.de-en",
        "training-parallel-nc-v9.tgz": "training/news-commentary-v9.de-en",
        "training-parallel-nc-v11.tgz": "training-parallel-nc-v11/news-commentary-v11.de-en",
    }[name]
    # TFDS takes what follows the last line feed for a line, too; the published files end so, and both sides alike.
    return packed({f"{inner}.{language}": text(lines) for language, lines in sides.items()})


URLS = {split: [f"http://web/{split}/{publisher}" for publisher in ("cnn", "dailymail")] for split in ("train", "val")}
URLS["test"] = ["http://web/test/cnn", "http://web/test/dailymail"]


def stories(publisher: str) -> bytes:
    story = "\n\n".join([*WORDS, "@highlight", "the cat saw", "@highlight", "a dog ran"]).encode()
    names = [hashlib.sha1(url.encode()).hexdigest() for urls in URLS.values() for url in urls if publisher in url]
    return packed({f"{publisher}/stories/{name}.story": story for name in names})


def cfq() -> bytes:
    samples = [
        {
            "questionPatternModEntities": f"Did M{number} 's director edit M1",
            "sparqlPatternModEntities": f"SELECT count(*) WHERE {{\n?x0 ns:film.director.film M{number} .\n}}",
        }
        for number in range(6)
    ]
    split = {"trainIdxs": [0, 1, 2, 3], "devIdxs": [4], "testIdxs": [5]}
    names = ("mcd1", "mcd2", "mcd3", "random_split")
    files = {f"cfq/splits/{name}.json": json.dumps(split).encode() for name in names}
    return packed({"cfq/dataset.json": json.dumps(samples, indent=2).encode()} | files)


def summaries() -> bytes:
    files = {}
    for split in ("train", "val", "test"):
        files[f"{split}.txt.src"] = text((" ".join([*WORDS] * 30), *WORDS))
        files[f"{split}.txt.tgt.tagged"] = text((f"<t> {' . </t> <t> '.join(WORDS)} . </t>", "<t> a dog . </t>"))
    return packed(files)


def served(address: str) -> bytes:
    """What stands at an address, in small."""
    name = address.rpartition("/")[2]
    if "COGS" in address:
        kinds = ("subj_to_obj_common", "cp_recursion") if name == "gen.tsv" else ("in_distribution", "primitive")
        return table(
            f"A cat slept .\tcat ( x _ 1 ) AND sleep . agent ( x _ 2 , x _ 1 )\t{kinds[0]}",
            f"The dog ran .\t* dog ( x _ 1 ) ; run . agent ( x _ 2 , x _ 1 )\t{kinds[1]}",
        )
    if "2021-task1" in address:
        return table("afar\ta v a r", "a hoàn\ta h w n")
    if "allennlp_sempar" in address:
        return table(
            "which state border s0\t( lambda $0 e ( and ( state:t $0 ) ( next_to:t $0 s0 ) ) )",
            "how high is co0\t( elevation:i co0 )",
        )
    if "projects/nmt" in address:
        return text(WORDS if name.endswith(".en") else FOREIGN)
    if "statmt.org" in address:
        return wmt(name)
    if "abisee" in address:
        return "".join(f"{url}\n" for url in URLS[name.removeprefix("all_").removesuffix(".txt")]).encode()
    archives = {
        "de-en.tgz": iwslt14,
        "cnndm.tar.gz": summaries,
        "cfq.tar.gz": cfq,
        "uc?export=download&id=0BwmD_VLjROrfTHk4NFg2SndKcjQ": lambda: stories("cnn"),
        "uc?export=download&id=0BwmD_VLjROrfM1BxdkxVaTY2bWs": lambda: stories("dailymail"),
        "uc?export=download&id=1USoQ8lJgN8kAWnUnRrupMGrPMLlDVqlV": lambda: zipped(
            {
                f"org_data/{split}.{side}.txt": text(lines)
                for split in ("train", "dev", "test")
                for side, lines in (("src", ("police said #.# <unk> people fled", *WORDS)), ("tgt", ("# flee", *WORDS)))
            }
        ),
    }
    return archives[name]()


class Network:
    """Serves files to TFDS's downloader, in the place of the network.

    Attributes:
      vouched: whether it says of a file the size and checksum that are registered for its address.
      asked: addresses that were asked for.
    """

    def __init__(self) -> None:
        self.vouched = True
        self.asked: list[str] = []

    def download(self, url: str, folder: Any) -> downloader.DownloadResult:
        self.asked.append(url)
        known = known_files().get(url)
        path = folder / (known.filename if known and known.filename else url.rpartition("/")[2])
        path.write_bytes(served(url))
        found = checksums.compute_url_info(path)
        return downloader.DownloadResult(path=path, url_info=known if known and self.vouched else found)


def known_files() -> dict[str, checksums.UrlInfo]:
    return checksums.get_all_url_infos() | (tfds.builder_cls("cogs").url_infos or {})


@pytest.fixture
def network(monkeypatch):
    found = Network()
    sync = lambda self, url, folder, verify=True: found.download(url, folder)  # noqa: E731
    monkeypatch.setattr(downloader._Downloader, "_sync_download", sync)
    monkeypatch.setattr(registered, "_any_answers", lambda hosts: True)
    return found


@pytest.fixture
def small(monkeypatch):
    """Files of fewer pairs than were published."""
    monkeypatch.setattr(published, "Part", lambda addresses, count: Part(addresses, None))


Part = published.Part
PAIRS = {  # of a recipe: splits, and a pair of train
    "cogs": (
        {"train", "validation", "test", "test_gen"},
        ("A cat slept .", "cat ( x _ 1 ) AND sleep . agent ( x _ 2 , x _ 1 )"),
    ),
    "cfq": (
        {"train", "validation", "test"},
        ("Did M0 's director edit M1", "SELECT count(*) WHERE { ?x0 ns:film.director.film M0 . }"),
    ),
    "iwslt15_en_vi": ({"train", "validation", "test"}, (WORDS[0], FOREIGN[0])),
    "iwslt14_de_en": (
        {"train", "validation", "test"},
        ("die katze sah einen kleinen hund , ein hund lief heim .", "the cat saw a small dog , a dog ran home ."),
    ),
    "wmt14_en_de_luong2015": ({"train", "validation", "test_2014", "test_2015"}, (WORDS[2], FOREIGN[2])),
    "gnmt_en_de": ({"train", "validation", "test"}, (WORDS[0], FOREIGN[0])),
    "gnmt_v2_en_de": ({"train", "validation", "test"}, (WORDS[3], FOREIGN[3])),
    "rnmt_plus_en_de": ({"train", "validation", "test"}, (WORDS[1], FOREIGN[1])),
    "cnn_dailymail": ({"train", "validation", "test"}, (WORDS[0], "a dog .")),
    "gigaword": ({"train", "validation", "test"}, ("police said #.# UNK people fled", "# flee")),
    "sigmorphon2021_g2p": ({"train", "validation", "test"}, ("a f a r", "a v a r")),
    "lang2logic": ({"train", "validation", "test"}, ("how high is co0", "( elevation:i co0 )")),
}


@pytest.mark.parametrize("name", RECIPES)
def test_the_data_of_every_recipe_become_ids_and_text_again(name, network, small, tmp_path):
    splits, pair = PAIRS[name]
    config = load_config(CONFIGS[name])
    # SentencePiece has no 32,000 pieces in so little text.
    size = 40 if config.data.vocabulary in ("bpe", "unigram") else config.data.vocab_size
    data = replace(config.data, data_dir=str(tmp_path), vocab_size=size)
    corpus = load_corpus(data)
    assert set(corpus.splits) == splits
    assert config.published_split in (None, *splits)
    train = corpus.split("train")
    sources, targets = train.read(0, len(train))
    assert pair in set(zip(sources, targets, strict=True))
    vocabularies = build_vocabularies(data, train)
    for vocabulary, line in zip((vocabularies.source, vocabularies.target), pair, strict=True):
        (ids,) = vocabulary.encode([line])
        assert len(ids) < config.data.max_length
        frequent = config.data.min_frequency == 1 or name == "iwslt15_en_vi"
        assert not frequent or vocabulary.decode([ids]) == [line]


@pytest.mark.parametrize("corpus", ["wmt14_translate/de-en", "wmt16_translate/de-en"])
def test_tfds_has_the_test_sets_that_the_notes_name(corpus):
    registered._make_builder(corpus, Path("unused"))
    builder: Any = tfds.builder(corpus)
    subsets = {str(split): names for split, names in builder._subsets.items()}
    year = corpus[3:5]
    assert f"newstest20{year}" in subsets["test"]
    assert {"14": "newstest2013", "16": "newstest2015"}[year] in subsets["validation"]


# ---- the builders of ours


def load(tmp_path, corpus, **settings: Any):
    data = replace(load_config(CONFIGS["cogs"]).data, corpus=corpus, data_dir=str(tmp_path), **settings)
    return load_corpus(data)


def lines_of(corpus, split):
    return list(zip(*corpus.split(split).read(0, 10_000), strict=True))


def test_pairs_keep_the_order_of_their_files(network, small, tmp_path):
    corpus = load(tmp_path, "iwslt15_en_vi")
    assert lines_of(corpus, "test") == [(WORDS[number % 4], FOREIGN[number % 4]) for number in range(LINES)]


@pytest.mark.parametrize("name", ["fairseq", "mixer"])
def test_talks_are_cut_and_cleaned_as_the_scripts_say(name, network, small, tmp_path):
    corpus = load(tmp_path, f"iwslt14_de_en/{name}")
    tail = [
        ("eins zwei drei", "one , two"),
        ("die katze sah einen kleinen hund , ein hund lief heim .", "the cat saw a small dog , a dog ran home ."),
    ]
    long = [(" ".join(["lang"] * 60), " ".join(["long"] * 50))] if name == "fairseq" else []  # 50 tokens, and 60
    titled = [(FOREIGN[0], WORDS[0])]
    body = [(FOREIGN[number % 4], WORDS[number % 4]) for number in range(LINES)]
    kept = titled + body + long + tail
    assert lines_of(corpus, "train") == [pair for number, pair in enumerate(kept, 1) if number % 23]
    assert lines_of(corpus, "validation") == [pair for number, pair in enumerate(kept, 1) if number % 23 == 0]
    test = lines_of(corpus, "test")
    assert test[0] == ("ted.dev2010 : it &apos; s", "ted.dev2010 : it &apos;s")
    assert len(test) == 5 * 5 and test[6] == (FOREIGN[0], WORDS[0])


def test_pairs_are_kept_by_the_rule_of_clean_corpus_n():
    for source in range(8):
        for target in range(8):
            one_is_empty, too_long = 0 in (source, target), source > 6 or target > 6
            uneven = not one_is_empty and (source / target > 1.5 or target / source > 1.5)
            assert published._alike(source, target, 6) != (one_is_empty or too_long or uneven)


def test_articles_are_cut_to_400_tokens_and_summaries_in_train_to_100(network, small, tmp_path, monkeypatch):
    long = f"<t> {' '.join(['word'] * 120)} . </t>\n".encode()
    monkeypatch.setattr(
        f"{__name__}.summaries",
        lambda: packed(
            {f"{split}.txt.src": b"w " * 500 + b"\n" for split in ("train", "val", "test")}
            | {f"{split}.txt.tgt.tagged": long for split in ("train", "val", "test")}
        ),
    )
    corpus = load(tmp_path, "cnn_dailymail_tokenized")
    lengths = {
        split: [[len(side.split()) for side in pair] for pair in lines_of(corpus, split)] for split in ("train",)
    }
    assert lengths == {"train": [[400, 100]]}
    assert [len(side.split()) for side in lines_of(corpus, "test")[0]] == [400, 121]


def test_a_blank_in_a_word_is_a_character_of_it(network, small, tmp_path):
    assert ("a ␣ h o à n", "a h w n") in lines_of(load(tmp_path, "sigmorphon2021_g2p/vie_hanoi"), "train")


@pytest.mark.parametrize("language", published.Sigmorphon2021G2p.builder_configs)
def test_every_language_of_sigmorphon_2021_has_checked_files(language):
    builder: Any = tfds.builder(f"sigmorphon2021_g2p/{language}")
    assert len(builder.addresses) == 3 and set(builder.addresses) <= set(builder.url_infos)


def test_addresses_without_a_checksum_are_those_whose_text_could_not_be_read_here():
    names = [name for name, kind in vars(published).items() if isinstance(kind, type) and kind in concrete()]
    unknown = set()
    for name in names:
        kind = getattr(published, name)
        for config in kind.BUILDER_CONFIGS or [None]:
            builder: Any = tfds.builder(f"{kind.name}/{config.name}" if config else kind.name)
            unknown |= {address.rpartition("/")[2] for address in set(builder.addresses) - set(builder.url_infos)}
    years = ("2013", "2014", "2015")
    stanford = {f"newstest{year}.{language}" for year in years for language in ("en", "de")}
    assert unknown == stanford | {"gen.tsv", "train.en", "train.vi", "train.de", "de-en.tgz", "cnndm.tar.gz"}


def concrete() -> set[type]:
    found, new = set(), {published.Published}
    while new:
        new = {child for parent in new for child in parent.__subclasses__()}
        found |= new
    return {kind for kind in found if not kind.__name__.startswith("_")}


def test_another_number_of_pairs_than_published_is_refused(network, tmp_path):
    with pytest.raises(
        UserError, match=r"cogs: .*split train was published with 24,155 pairs, and .*train.tsv gave 48"
    ):
        load(tmp_path, "cogs")
    assert not list(tmp_path.rglob("*.array_record*"))


def test_a_file_with_another_checksum_is_refused(network, tmp_path):
    network.vouched = False
    with pytest.raises(UserError, match=r"cogs: .*\.tsv has another checksum than the file that was published"):
        load(tmp_path, "cogs")


def test_files_that_are_downloaded_once_are_not_downloaded_again(network, small, tmp_path):
    first = load(tmp_path, "sigmorphon2021_g2p/ice")
    asked = list(network.asked)
    assert load(tmp_path, "sigmorphon2021_g2p/ice").fingerprint == first.fingerprint and network.asked == asked
    assert len(asked) == 3


def test_without_a_network_one_message_names_the_host_of_this_corpus_alone(tmp_path, monkeypatch):
    def refuse(*arguments, **settings):
        raise OSError("no network")

    monkeypatch.setattr(socket, "create_connection", refuse)
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(
        UserError, match="iwslt15_en_vi is not on this machine, and no network reaches nlp.stanford.edu to"
    ):
        load(tmp_path, "iwslt15_en_vi")
    assert list(tmp_path.rglob("*")) == []


def test_a_missing_tokeniser_is_told_before_anything_is_downloaded(network, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "sacremoses", None)
    with pytest.raises(UserError, match="needs the package sacremoses: pip install sacremoses"):
        load(tmp_path, "iwslt14_de_en/mixer")
    assert not network.asked


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content.replace(b"\t", b" ", 1), "line 1: 2 columns, not sentence, logical_form, category"),
        (lambda content: b"\xff" + content, "can't decode byte 0xff"),
    ],
)
def test_a_file_of_another_form_is_told(change, message, network, small, tmp_path, monkeypatch):
    original = served
    monkeypatch.setattr(f"{__name__}.served", lambda address: change(original(address)))
    with pytest.raises(UserError, match=f"cogs: TFDS could not prepare it: .*{message}"):
        load(tmp_path, "cogs")


def test_files_side_by_side_must_have_as_many_lines(network, small, tmp_path, monkeypatch):
    original = served
    monkeypatch.setattr(
        f"{__name__}.served", lambda address: original(address) + (b"more\n" if address.endswith(".vi") else b"")
    )
    with pytest.raises(UserError, match="ends at line 49, and the file beside it does not"):
        load(tmp_path, "iwslt15_en_vi")


@pytest.mark.parametrize(
    ("corpus", "message"),
    [
        ("iwslt15_envi", "Did you mean iwslt15_en_vi"),
        ("lang2logic/jbos", "no configuration jbos; its configurations are geo, atis, jobs. Did you mean jobs"),
    ],
)
def test_a_misspelt_corpus_is_told_with_the_nearest(corpus, message, tmp_path):
    with pytest.raises(UserError, match=message):
        load(tmp_path, corpus)
