"""The corpora that the package makes itself, by name; nothing is downloaded."""

from seq2seq_jax.config import DataConfig
from seq2seq_jax.data.corpora.formal_corpus import TASKS, find_formal_corpus
from seq2seq_jax.data.corpora.raw import RawCorpus
from seq2seq_jax.data.corpora.scan_corpus import CONFIGS, find_scan_corpus
from seq2seq_jax.errors import UserError

_FAMILIES = {"scan": find_scan_corpus, "formal": find_formal_corpus}
NAMES = (*(f"scan/{config}" for config in CONFIGS), *(f"formal/{task}" for task in TASKS))


def is_generated(name: str) -> bool:
    """Whether data.corpus `name` is one of `NAMES`, or looks like one."""
    return name.partition("/")[0] in _FAMILIES


def find_generated(config: DataConfig) -> RawCorpus:
    """Returns the corpus data.corpus, which `is_generated`.

    Raises:
      UserError: there is no such corpus, or it is asked for what it does not have.
    """
    family, _, rest = config.corpus.partition("/")
    raw = _FAMILIES[family](rest)
    for field, what in (("features", "tags"), ("turns", "dialogues")):
        if name := getattr(config, field):
            raise UserError(f"data.{field} {name}: {config.corpus} has {raw.source} and {raw.target}, and no {what}.")
    return raw
