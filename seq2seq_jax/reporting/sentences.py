"""The parts of a report that look at sentences: errors by length and frequency, samples, the best and the worst."""

import json
import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from seq2seq_jax.config import from_json
from seq2seq_jax.data.encoded import encode_lines
from seq2seq_jax.errors import UserError
from seq2seq_jax.metrics import Measured, measured_by, streams
from seq2seq_jax.reporting.charts import Bar, badge, bar_chart, heat_map
from seq2seq_jax.reporting.markup import Content, Element, element
from seq2seq_jax.reporting.runs import Evaluation, Outputs, TextGone, training_words
from seq2seq_jax.reporting.statistics import (
    WordClass,
    by_frequency,
    equal_parts,
    sentence_scores,
    wilson,
)
from seq2seq_jax.translator import Details, Hypothesis, load
from seq2seq_jax.wording import counted

NUM_SAMPLES = 5
NUM_EXTREME = 8  # sentences that are shown of the best, the worst, the most different
LONGEST_MAP = 80  # tokens of either side


def length_section(evaluation: Evaluation) -> Iterator[Content]:
    """Scores by the length of sources and of references."""
    yield element(
        "p",
        "Each range holds about as many sentences as the others, as far as their lengths allow. Lengths are in tokens"
        " of the vocabulary (of the first run), the end mark not counted; of several references the first counts."
        " BLEU and chrF are corpus scores of the sentences in the range; lines on bars of exact match are 95 % Wilson"
        " intervals.",
        class_="faint",
    )
    for side, lengths in (("source", evaluation.source_lengths), ("reference", evaluation.target_lengths)):
        ranges = equal_parts(lengths)
        names = [f"{first}–{last}" if first < last else f"{first}" for first, last in ranges]
        places = [np.flatnonzero((lengths >= first) & (lengths <= last)) for first, last in ranges]
        labels = [f"{name} ({len(there):,})" for name, there in zip(names, places, strict=True)]
        measures: dict[str, Callable[[Outputs, Int[np.ndarray, " n"]], tuple[float, tuple[float, float] | None]]] = {
            "BLEU": partial(_corpus_score, "bleu", evaluation),
            "chrF": partial(_corpus_score, "chrf", evaluation),
            "Exact match, %": _exact,
        }
        charts = []
        for title, measure in measures.items():
            runs = {
                each.run.number: [
                    Bar(*(found := measure(each, there)), f"{each.run.name}, {label}: {found[0]:.1f}")
                    for there, label in zip(places, labels, strict=True)
                ]
                for each in evaluation.outputs
            }
            charts.append(bar_chart(title, names, runs, f"tokens of the {side}"))
        sizes = ", ".join(f"{name}: {len(there):,}" for name, there in zip(names, places, strict=True))
        yield element("h3", f"By length of the {side}")
        yield element("div", *charts, class_="charts")
        yield element("p", f"Sentences: {sizes}.", class_="faint")


def _corpus_score(
    metric: str, evaluation: Evaluation, outputs: Outputs, places: Int[np.ndarray, " n"]
) -> tuple[float, None]:
    measured = _measured(metric, outputs)
    references = streams([evaluation.references[place] for place in places])
    return float(measured.metric.corpus_score([outputs.hypotheses[place] for place in places], references).score), None


def _measured(metric: str, outputs: Outputs) -> Measured:
    measured = measured_by(metric, outputs.scores.get(f"{metric}_signature", ""))
    assert measured is not None
    return measured


def _exact(outputs: Outputs, places: Int[np.ndarray, " n"]) -> tuple[float, tuple[float, float]]:
    right, total = int(outputs.exact[places].sum()), len(places)
    low, high = wilson(right, total)
    return 100 * right / total, (100 * low, 100 * high)


def frequency_section(evaluation: Evaluation) -> Iterator[Content]:
    """How well words are written, by how often they are in the training text."""
    first = evaluation.outputs[0]
    measured, lowercase = _measured("bleu", first), first.run.config.data.lowercase

    def tokenize(line: str) -> list[str]:
        return measured.tokenize(line.lower() if lowercase else line)

    try:
        frequencies = training_words(first.run, tokenize)
    except TextGone as gone:
        yield element("p", f"Not known: {gone}", class_="note")
        return
    references = [texts[0] for texts in evaluation.references]
    found = [by_frequency(each.hypotheses, references, frequencies.words, tokenize) for each in evaluation.outputs]
    part = "" if frequencies.counted == frequencies.pairs else f"the first {frequencies.counted:,} of "
    tokenizer = first.scores.get("bleu_signature", "").partition("tok:")[2].partition("|")[0]
    yield element(
        "p",
        "F1 of words by their frequency in the training text: a word of a reference is found if the output has it,"
        " wherever it stands, and as often as both have it (as in compare-mt, Neubig et al. 2019). Words are BLEU's"
        f" tokens ({tokenizer}), counted in the targets of {part}{counted(frequencies.pairs, 'training pair')}"
        f"{' of the first run' if len(found) > 1 else ''}; of several references the first counts.",
        class_="faint",
    )
    classes = sorted({(each.first, each.last) for of_run in found for each in of_run}, key=lambda ends: ends[0])
    names = [_range(*ends) for ends in classes]
    runs = {}
    for outputs, of_run in zip(evaluation.outputs, found, strict=True):
        known = {(each.first, each.last): each for each in of_run}
        words = [known.get(ends, WordClass(*ends, 0, 0, 0)) for ends in classes]
        runs[outputs.run.number] = [
            Bar(0.0 if math.isnan(each.f1) else 100 * each.f1, None, f"{outputs.run.name}, {name}: {_told(each)}")
            for name, each in zip(names, words, strict=True)
        ]
    marks = [f"{first}{'' if first == last else '+'}" for first, last in classes]
    yield element("div", bar_chart("F1, %", marks, runs, "times in the training text"), class_="charts")
    yield _word_table(evaluation.outputs, found)


def _told(words: WordClass) -> str:
    return f"F1 {_percent(words.f1)}, recall {_percent(words.recall)}, precision {_percent(words.precision)}"


def _percent(share: float) -> str:
    return "–" if math.isnan(share) else f"{100 * share:.1f}"


def _word_table(outputs: Sequence[Outputs], found: Sequence[Sequence[WordClass]]) -> Element:
    columns = ("times in training", "in references", "in outputs", "in both", "recall", "precision", "F1")
    head = element("tr", element("th", "run"), *(element("th", name, class_="number") for name in columns))
    rows = [
        element(
            "tr",
            element("td", *_named(each, len(outputs) > 1)),
            *(
                element("td", text, class_="number")
                for text in (
                    _range(words.first, words.last),
                    *(f"{count:,}" for count in (words.references, words.outputs, words.matched)),
                    *map(_percent, (words.recall, words.precision, words.f1)),
                )
            ),
        )
        for each, classes in zip(outputs, found, strict=True)
        for words in classes
    ]
    table = element("table", element("thead", head), element("tbody", *rows))
    return element("details", element("summary", "Numbers"), element("div", table, class_="wide"))


def _range(first: int, last: int | None) -> str:
    if last is None:
        return f"≥ {first:,}"
    return f"{first:,}" if first == last else f"{first:,}–{last:,}"


def sample_section(evaluation: Evaluation) -> Iterator[Content]:
    """A few sentences, evenly spread over the test set, decoded again, with the attention to their sources."""
    places = np.unique(np.linspace(0, len(evaluation.sources) - 1, NUM_SAMPLES).round().astype(int)).tolist()
    lines = [evaluation.sources[place] for place in places]
    decoded: list[list[Hypothesis] | None] = []
    yield element(
        "p",
        "Evenly spread over the test set, and decoded for this page. Maps: a row for each token of the output, a column"
        " for each of the source; the stronger the colour, the more attention. Behind each row stands the probability"
        " of its token given those before.",
        class_="faint",
    )
    for outputs in evaluation.outputs:
        try:
            decoded.append(_decode(outputs, lines))
        except UserError as error:
            decoded.append(None)
            yield element("p", f"{outputs.run.name} cannot be decoded with: {error}", class_="note")
    for number, place in enumerate(places):
        parts = []
        for outputs, found in zip(evaluation.outputs, decoded, strict=True):
            if found is not None and (details := found[number].details) is not None:
                name = f"{outputs.run.name}: attention in item {place + 1}"
                parts.append(_attention(name, details))
        texts = [None if found is None else found[number].text for found in decoded]
        yield _sentence(evaluation, place, texts, None, parts)


def _decode(outputs: Outputs, lines: Sequence[str]) -> list[Hypothesis]:
    scores, run = outputs.scores, outputs.run
    models = run.models if len(run.models) > 1 else [Path(each) for each in scores.get("workdirs", run.models)]
    decode = from_json(json.dumps({"decode": scores["decode"]})).decode if "decode" in scores else None
    translator = load(models, decode)
    return translator.translate_ids(encode_lines(translator.vocabularies, lines).sources, lines, details=True)


def _attention(name: str, details: Details) -> Element:
    probabilities = [f"{math.exp(value):.2f}" for value in details.log_probs]
    longest = max(len(details.tokens), len(details.source_tokens))
    if details.weights and longest <= LONGEST_MAP:
        return heat_map(name, details.tokens, details.source_tokens, np.array(details.weights), probabilities)
    why = "the model has no attention" if details.weights is None else f"more than {LONGEST_MAP} tokens"
    if not details.tokens:
        why = "nothing was decoded"
    tokens = " ".join(f"{token} {value}" for token, value in zip(details.tokens, probabilities, strict=True))
    return element("p", f"No map: {why}. Tokens with their probabilities: ", element("bdi", tokens, class_="mono"))


def chrf_of(evaluation: Evaluation) -> Float[np.ndarray, "R N"]:
    """Sentence chrF of each run's outputs."""
    return np.stack(
        [
            sentence_scores(each.hypotheses, evaluation.references, lowercase=each.run.config.data.lowercase)
            for each in evaluation.outputs
        ]
    )


def extreme_section(evaluation: Evaluation, chrf: Float[np.ndarray, "R N"]) -> Iterator[Content]:
    """The best and the worst outputs, by sentence chrF; of several runs by the mean."""
    mean, lengths = chrf.mean(0), evaluation.target_lengths
    yield element(
        "p",
        f"By sentence chrF{', the mean over the runs' if len(chrf) > 1 else ''}; of equal ones the longer references"
        " first.",
        class_="faint",
    )
    for title, key in (("Worst", mean), ("Best", -mean)):
        order = np.lexsort((-lengths, np.round(key, 6)))[:NUM_EXTREME]
        shown = [_sentence(evaluation, int(place), _texts(evaluation, place), chrf[:, place]) for place in order]
        yield element("details", element("summary", f"{title} {len(shown)}"), *shown, open="open")


def difference_section(evaluation: Evaluation, chrf: Float[np.ndarray, "R N"]) -> Iterator[Content]:
    """Where each further run differs most from the first, by sentence chrF."""
    for number, outputs in enumerate(evaluation.outputs[1:], 1):
        gain = chrf[number] - chrf[0]
        better, worse = int((gain > 0).sum()), int((gain < 0).sum())
        yield element("h3", *_named(outputs, True), f" beside {evaluation.outputs[0].run.name}")
        equal = len(gain) - better - worse
        yield element("p", f"chrF is higher in {counted(better, 'sentence')}, lower in {worse:,}, equal in {equal:,}.")
        for title, key in (("Most gained", -gain), ("Most lost", gain)):
            order = [int(place) for place in np.lexsort((-evaluation.target_lengths, key)) if key[place] < 0]
            shown = [
                _sentence(evaluation, place, _texts(evaluation, place), chrf[:, place]) for place in order[:NUM_EXTREME]
            ]
            if shown:
                yield element("details", element("summary", f"{title}: {len(shown)}"), *shown, open="open")


def _texts(evaluation: Evaluation, place: int | np.integer) -> list[str]:
    return [each.hypotheses[place] for each in evaluation.outputs]


def _sentence(
    evaluation: Evaluation,
    place: int,
    texts: Sequence[str | None],
    chrf: Float[np.ndarray, " R"] | None,
    parts: Sequence[Element] = (),
) -> Element:
    """An item with what each run made of it; None where that is not known."""
    lines: list[Element] = [*_line("source", evaluation.sources[place])]
    for reference in evaluation.references[place]:
        lines += _line("reference", reference)
    for number, (outputs, text) in enumerate(zip(evaluation.outputs, texts, strict=True)):
        if text is None:
            continue
        value = "" if chrf is None else f" chrF {chrf[number]:.1f}"
        name = [*_named(outputs, True), value] if len(texts) > 1 else [f"output{value}"]
        lines += _line(name, text)
    head = element("p", f"Item {place + 1:,}", class_="faint")
    return element("div", head, element("dl", *lines), element("div", *parts, class_="maps"), class_="sample")


def _line(name: str | Sequence[Content], text: str) -> list[Element]:
    term = [name] if isinstance(name, str) else name
    shown = element("bdi", text, dir="auto") if text else element("i", "empty", class_="faint")
    return [element("dt", *term), element("dd", shown)]


def _named(outputs: Outputs, several: bool) -> list[Content]:
    """The name of a run, where there are several with its colour."""
    return [badge(outputs.run.number), outputs.run.name] if several else [outputs.run.name]
