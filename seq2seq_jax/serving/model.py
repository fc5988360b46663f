"""What a server asks of a translator: searches by kind and shape, and steps."""

from collections.abc import Sequence

from seq2seq_jax.data.batching import round_up
from seq2seq_jax.data.encoded import Rows, encode_lines
from seq2seq_jax.serving.programs import Kind, Programs, Shape
from seq2seq_jax.serving.streaming import Stepwise, Stream
from seq2seq_jax.translator import SOURCE_MULTIPLE, Hypothesis, Translator


class Model:
    """A translator whose programs are compiled before they are needed.

    Args:
      translator: its search settings hold for all but streams, which are greedy.
      max_tokens: of a source, its end mark included; by default data.max_length.
    """

    def __init__(self, translator: Translator, max_tokens: int | None) -> None:
        self.translator, self._stepwise = translator, Stepwise(translator)
        self.beam_size = translator.decode.beam_size
        self.max_tokens = max_tokens or translator.config.data.max_length
        kinds: list[Kind] = ["best", "stream", "details"]
        if self.beam_size > 1:
            kinds += ["several", "several with details"]
        widest, num_devices = round_up(self.max_tokens, SOURCE_MULTIPLE), translator.mesh.size
        self.programs = Programs(self._compile, kinds, translator.decode.batch_size, widest, num_devices)

    def encode(self, lines: Sequence[str]) -> Rows:
        """Returns the ids of lines as they are read.

        Raises:
          UserError: a source of a model with tags has none.
        """
        return encode_lines(self.translator.vocabularies, lines).sources

    def search(self, lines: Sequence[str], kind: Kind, shape: Shape) -> list[list[Hypothesis]]:
        """Returns the hypotheses of lines, none of them empty, best first."""
        num_best, details = self._num_best(kind), kind.endswith("details")
        return self.translator.translate_batch(lines, *shape, num_best=num_best, details=details)

    def _num_best(self, kind: Kind) -> int:
        return self.beam_size if kind.startswith("several") else 1

    def stream(self, line: str, length: int) -> Stream:
        """Begins to write what a line becomes; its ids are `length`."""
        return self._stepwise.begin(line, self.programs.fitting("stream", 1, length).width)

    def num_tokens(self, hypotheses: Sequence[Hypothesis]) -> int:
        """Returns the tokens of outputs as the vocabulary cuts them, end marks included."""
        return sum(
            len(ids) + 1 for ids in self.translator.vocabularies.target.encode([each.text for each in hypotheses])
        )

    def _compile(self, kind: Kind, shape: Shape) -> None:
        if kind == "stream":
            self._stepwise.compile(shape.width)
        # What gives details also finds what is attended to in the place of an unknown word.
        details, unknown = kind.endswith("details"), self.translator.decode.replace_unknown
        if kind != "stream" or unknown:
            self.translator.translate_batch([], *shape, num_best=self._num_best(kind), details=details or unknown)
