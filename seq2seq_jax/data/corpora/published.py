"""Corpora of published experiments that TFDS lacks, as builders of TFDS.

Each class says where its text is, how many pairs were published, and how its
files are read where that is not line by line. TFDS does the rest, as for its own
datasets: downloads, the comparison with checksums.tsv beside this file, and
ArrayRecord files on disk, with the pairs in the order of their files. An address
that checksums.tsv lacks is not compared by TFDS; what vouches for it is the
number of its pairs, where that is known here.
"""

import importlib
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import tensorflow_datasets as tfds

_GITHUB = "https://raw.githubusercontent.com"


class Part(NamedTuple):
    """One split.

    Attributes:
      addresses: of a file with all columns, between tabs; or of a file for each column, line by line.
      count: pairs that it was published with; None where that is not known here.
    """

    addresses: tuple[str, ...]
    count: int | None


class Published(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """What the corpora below have in common.

    Attributes:
      COLUMNS: names of the columns, the one that is read first and the one that is written after it.
    """

    VERSION = tfds.core.Version("1.0.0")
    COLUMNS: tuple[str, ...]

    @property
    def parts(self) -> Mapping[str, Part]:
        """Where each split is."""
        raise NotImplementedError

    @property
    def addresses(self) -> tuple[str, ...]:
        """All that is downloaded."""
        return tuple(dict.fromkeys(address for part in self.parts.values() for address in part.addresses))

    def _info(self) -> tfds.core.DatasetInfo:
        columns = {column: tfds.features.Text() for column in self.COLUMNS}
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(columns),
            supervised_keys=(self.COLUMNS[0], self.COLUMNS[1]),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, dict[str, str]]]]:
        paths = dl_manager.download_and_extract({address: address for address in self.addresses})
        return {
            split: self._generate_examples(split, [Path(paths[address]) for address in part.addresses])
            for split, part in self.parts.items()
        }

    def _generate_examples(self, split: str, paths: Sequence[Path]) -> Iterator[tuple[int, dict[str, str]]]:
        count = 0
        for count, row in enumerate(self.rows(split, paths), 1):
            yield count, dict(zip(self.COLUMNS, row, strict=True))
        expected = self.parts[split].count
        if expected is not None and count != expected:
            raise ValueError(
                f"split {split} was published with {expected:,} pairs, and {', '.join(self.parts[split].addresses)}"
                f" gave {count:,}"
            )

    def rows(self, split: str, paths: Sequence[Path]) -> Iterator[Sequence[str]]:
        """Yields the columns of every pair of a split, given its downloaded files."""
        if len(paths) == 1:
            for number, line in enumerate(_lines(paths[0]), 1):
                row = line.split("\t")
                if len(row) != len(self.COLUMNS):
                    raise ValueError(f"{paths[0]}, line {number:,}: {len(row)} columns, not {', '.join(self.COLUMNS)}")
                yield row
        else:
            yield from _side_by_side(*paths)


def _lines(path: Path) -> Iterator[str]:
    """Yields the lines of a UTF-8 file; only a line feed ends one."""
    with path.open(encoding="utf-8", newline="\n") as file:
        for line in file:
            yield line.rstrip("\n").removesuffix("\r")


def _side_by_side(*paths: Path) -> Iterator[tuple[str, ...]]:
    for number, row in enumerate(itertools.zip_longest(*map(_lines, paths)), 1):
        if None in row:
            raise ValueError(f"{paths[row.index(None)]} ends at line {number:,}, and the file beside it does not")
        yield row


def _configs(*names: str) -> list[tfds.core.BuilderConfig]:
    return [tfds.core.BuilderConfig(name=name, version=Published.VERSION) for name in names]


class Cogs(Published):
    """COGS, Kim and Linzen 2020, with the roles of September 2022. test_gen is their generalization set."""

    COLUMNS = ("sentence", "logical_form", "category")

    @property
    def parts(self) -> Mapping[str, Part]:
        place = f"{_GITHUB}/najoungkim/COGS/165a7b669eade971fa47bf568a2e51925360fed8/data"
        return {
            "train": Part((f"{place}/train.tsv",), 24_155),
            "validation": Part((f"{place}/dev.tsv",), 3_000),
            "test": Part((f"{place}/test.tsv",), 3_000),
            "test_gen": Part((f"{place}/gen.tsv",), 21_000),
        }


class _Stanford(Published, skip_registration=True):
    """Tokenised text of nlp.stanford.edu/projects/nmt, a file a language."""

    FOLDER: str
    FILES: Mapping[str, tuple[str, int | None]]
    """For every split the name of its files and the number of its pairs."""

    @property
    def parts(self) -> Mapping[str, Part]:
        place = f"https://nlp.stanford.edu/projects/nmt/data/{self.FOLDER}"
        return {
            split: Part(tuple(f"{place}/{name}.{language}" for language in self.COLUMNS), count)
            for split, (name, count) in self.FILES.items()
        }


class Iwslt15EnVi(_Stanford):
    """IWSLT 2015, English and Vietnamese, as Luong and Manning 2015 prepared it."""

    COLUMNS = ("en", "vi")
    FOLDER = "iwslt15.en-vi"
    FILES = {"train": ("train", 133_317), "validation": ("tst2012", 1_553), "test": ("tst2013", 1_268)}


class Wmt14EnDeStanford(_Stanford):
    """WMT 2014, English and German, as Luong et al. 2015 prepared it."""

    COLUMNS = ("en", "de")
    FOLDER = "wmt14.en-de"
    FILES = {
        "train": ("train", None),
        "validation": ("newstest2013", 3_000),
        "test_2014": ("newstest2014", 2_737),
        "test_2015": ("newstest2015", 2_169),
    }


class Iwslt14DeEn(Published):
    """IWSLT 2014, German and English, tokenised, lowercased and cut into splits as MIXER and fairseq do.

    Of the training text, what is longer than a limit or half as long again as its
    partner is left out; every 23rd pair of the rest is for validation. mixer: at most
    50 tokens (Ranzato et al. 2016). fairseq: at most 175, which with Moses' Perl
    scripts leaves 160,239 and 7,283 pairs. The tokeniser here is sacremoses, so that a
    pair at a limit may fall on its other side.
    """

    COLUMNS = ("de", "en")
    BUILDER_CONFIGS = _configs("fairseq", "mixer")

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self._moses = importlib.import_module("sacremoses")  # before the download

    @property
    def parts(self) -> Mapping[str, Part]:
        archive = ("http://dl.fbaipublicfiles.com/fairseq/data/iwslt14/de-en.tgz",)
        return {"train": Part(archive, None), "validation": Part(archive, None), "test": Part(archive, 6_750)}

    def rows(self, split: str, paths: Sequence[Path]) -> Iterator[Sequence[str]]:
        """Yields the pairs of a split of the unpacked archive."""
        folder = paths[0] / "de-en"
        if split == "test":
            for name in ("TED.dev2010", "TEDX.dev2012", "TED.tst2010", "TED.tst2011", "TED.tst2012"):
                yield from self._tokenized(*(folder / f"IWSLT14.{name}.de-en.{side}.xml" for side in self.COLUMNS))
            return
        pairs = self._tokenized(*(folder / f"train.tags.de-en.{side}" for side in self.COLUMNS))
        limit = 50 if self.builder_config.name == "mixer" else 175
        kept = (pair for pair in pairs if _alike(*(len(side.split()) for side in pair), limit))
        for number, pair in enumerate(kept, 1):
            if (number % 23 == 0) == (split == "validation"):
                yield pair

    def _tokenized(self, *paths: Path) -> Iterator[tuple[str, ...]]:
        sides = zip(paths, self.COLUMNS, strict=True)
        for row in itertools.zip_longest(*(self._tokens(path, language) for path, language in sides)):
            if None in row:
                raise ValueError(f"{paths[0].name} and {paths[1].name} differ in their number of lines")
            yield row

    def _tokens(self, path: Path, language: str) -> Iterator[str]:
        tokenizer = self._moses.MosesTokenizer(language)
        for line in _talk_lines(path):
            yield tokenizer.tokenize(line, return_str=True).lower()


def _talk_lines(path: Path) -> Iterator[str]:
    """Yields the text of a file of talks: of its segments in XML, else of its lines but addresses and keywords."""
    for line in _lines(path):
        if path.suffix == ".xml":
            if "<seg id" in line:
                yield re.sub(r'<seg id="[0-9]*">\s*|\s*</seg>\s*', "", line).replace("’", "'")
        elif not any(tag in line for tag in ("<url>", "<talkid>", "<keywords>")):
            yield re.sub("</?(title|description)>", "", line)


def _alike(source: int, target: int, limit: int) -> bool:
    """Returns whether Moses' clean-corpus-n keeps a pair of these lengths."""
    longer, shorter = max(source, target), min(source, target)
    return 0 < shorter and longer <= limit and longer <= 1.5 * shorter


class CnnDailymailTokenized(Published):
    """CNN/Daily Mail, lowercased and tokenised, with the cuts of See et al. 2017, section 5.

    The text is the one that OpenNMT's examples are trained on. Of every article
    the first 400 tokens are read. Of a summary in train, 100 are kept; validation and
    test have all of them. The marks of sentences in summaries are left out.
    """

    COLUMNS = ("article", "summary")
    _ARTICLE, _SUMMARY = 400, 100  # tokens

    @property
    def parts(self) -> Mapping[str, Part]:
        archive = ("https://s3.amazonaws.com/opennmt-models/Summary/cnndm.tar.gz",)
        return {"train": Part(archive, None), "validation": Part(archive, 13_368), "test": Part(archive, 11_490)}

    def rows(self, split: str, paths: Sequence[Path]) -> Iterator[Sequence[str]]:
        """Yields the pairs of a split of the unpacked archive."""
        name = "val" if split == "validation" else split
        files = [_only(paths[0], f"{name}.txt.{side}") for side in ("src", "tgt.tagged")]
        for article, summary in _side_by_side(*files):
            words = [word for word in summary.split() if word not in ("<t>", "</t>")]
            kept = words[: self._SUMMARY] if split == "train" else words
            yield " ".join(article.split()[: self._ARTICLE]), " ".join(kept)


def _only(folder: Path, name: str) -> Path:
    found = sorted(folder.rglob(name))
    if len(found) != 1:
        raise ValueError(f"the archive has {len(found)} files {name}, and should have one")
    return found[0]


class Sigmorphon2021G2p(Published):
    """SIGMORPHON 2021 shared task 1, spelling to sound.

    Spelling has blanks between its characters here, and ␣ for a blank of its own, as Vietnamese has.
    """

    COLUMNS = ("graphemes", "phonemes")
    LANGUAGES = {
        "high": ("eng_us",),
        "medium": "arm_e bul dut fre geo hbs_latn hun jpn_hira kor vie_hanoi".split(),
        "low": "ady gre ice ita khm lav mlt_latn rum slv wel_sw".split(),
    }
    COUNTS = {"high": (33_344, 4_168, 4_168), "medium": (8_000, 1_000, 1_000), "low": (800, 100, 100)}
    BUILDER_CONFIGS = _configs(*itertools.chain(*LANGUAGES.values()))

    @property
    def parts(self) -> Mapping[str, Part]:
        place = f"{_GITHUB}/sigmorphon/2021-task1/821bcdece5a47820872215969f275004b0abe80c/data"
        language = self.builder_config.name
        level = next(level for level, languages in self.LANGUAGES.items() if language in languages)
        names = {"train": "train", "validation": "dev", "test": "test"}
        return {
            split: Part((f"{place}/{level}/{language}_{name}.tsv",), count)
            for (split, name), count in zip(names.items(), self.COUNTS[level], strict=True)
        }

    def rows(self, split: str, paths: Sequence[Path]) -> Iterator[Sequence[str]]:
        """Yields spelling, with blanks, and sounds."""
        for graphemes, phonemes in super().rows(split, paths):
            yield " ".join(graphemes.replace(" ", "␣")), phonemes


class Lang2logic(Published):
    """GEO, ATIS and JOBS as Dong and Lapata 2016 prepared them: words stemmed, names and numbers replaced.

    From the copy in github.com/jbkjr/allennlp_sempar, which cuts the validation splits
    of geo and jobs from their training text.
    """

    COLUMNS = ("utterance", "logical_form")
    FILES = {"geo": "geoquery/geo", "atis": "atis/atis", "jobs": "jobqueries/jobs"}
    COUNTS = {"geo": (480, 119, 280), "atis": (4_434, 491, 448), "jobs": (399, 100, 140)}
    BUILDER_CONFIGS = _configs(*FILES)

    @property
    def parts(self) -> Mapping[str, Part]:
        place = f"{_GITHUB}/jbkjr/allennlp_sempar/466357bc5adc8022248f48e974db710b331419fb/data"
        name = self.builder_config.name
        suffixes = {"train": "train", "validation": "val", "test": "test"}
        return {
            split: Part((f"{place}/{self.FILES[name]}.{suffix}",), count)
            for (split, suffix), count in zip(suffixes.items(), self.COUNTS[name], strict=True)
        }
