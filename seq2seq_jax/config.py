"""Every setting of a run, in frozen dataclasses.

This is the only list of fields: files in `configs/` construct it, the command
line overrides it, `config.json` in a run directory is its image. A bad value is
refused here, before anything else happens, with `UserError`.
"""

import dataclasses
import itertools
import json
import re
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

from seq2seq_jax.errors import UserError, did_you_mean, not_plain, shortened, shown


class Bounds(NamedTuple):
    """The least and the largest value that a number may have; every field that holds a number states them."""

    least: float
    largest: float


SIZE = Bounds(1, 65_536)
POSITIONS = Bounds(2, 1_000_000)
COUNT = Bounds(1, 1_000_000_000)  # below 2 ** 31, what an int32 on a device counts to
COUNT_OR_NONE = Bounds(0, COUNT.largest)
SHARE = Bounds(0, 0.999_999)  # in float32 nearer ones are 1
SEED = Bounds(0, 2**32 - 1)  # JAX drops the bits above
MOST_HYPOTHESES = 1_000_000
PUBLISHED = ("published", "published_metric", "published_score", "published_band", "published_split")
"""What was published of an experiment, which changes nothing in it."""
MAY_BE_EMPTY = "may be empty"
"""Marks text that may be empty; any other text says something."""

Cell = Literal["rnn", "gru", "gru_v2", "lstm", "layer_norm_lstm", "layer_norm_gru", "min_lstm", "min_gru", "slstm"]
Attention = Literal[
    "none", "dot", "scaled_dot", "general", "concat", "additive", "normed_additive", "location", "hard_monotonic"
]
Tracking = Literal["wandb", "mlflow"]
STATE_PARTS = {
    "rnn": ("h",),
    "gru": ("h",),
    "gru_v2": ("h",),
    "lstm": ("c", "h"),
    "layer_norm_lstm": ("c", "h"),
    "layer_norm_gru": ("h",),
    "min_lstm": ("h",),
    "min_gru": ("h",),
    "slstm": ("c", "n", "m", "h"),
}
"""What each cell hands on from step to step."""
WITHOUT_RECURRENT_WEIGHTS = ("min_lstm", "min_gru")
"""Cells in which h enters no product."""
Ties = Literal["none", "source_target", "target_output", "all"]
VocabularyKind = Literal["unigram", "bpe", "characters", "words"]
FurtherMetric = Literal["rouge", "token_errors", "edit_distance", "distinct"]
FURTHER_SCORES = {
    "rouge": ("rouge1", "rouge2", "rougeL"),
    "token_errors": ("token_error_rate", "sequence_error_rate"),
    "edit_distance": ("edit_distance",),
    "distinct": ("distinct_1", "distinct_2"),
}
"""The scores that each further metric reports."""
PublishedMetric = Literal[
    "bleu",
    "bleu_lowercase",
    "bleu_moses_lowercase",
    "chrf",
    "chrf_lowercase",
    "exact_match",
    "token_accuracy",
    "loss",
    "perplexity",
    "rouge1",
    "rouge2",
    "rougeL",
    "token_error_rate",
    "sequence_error_rate",
    "edit_distance",
    "distinct_1",
    "distinct_2",
]
BEYOND_PERCENT = ("loss", "perplexity", "token_error_rate", "edit_distance")
"""Those that may be more than 100."""
LOWER_IS_BETTER = ("loss", "perplexity", "token_error_rate", "sequence_error_rate", "edit_distance")
Mixture = Literal["linear", "log_linear"]
BleuTokenizer = Literal["13a", "intl", "zh", "char", "none", "ja-mecab", "ko-mecab"]
TOKENIZER_OF: dict[str, BleuTokenizer] = {"zh": "zh", "ja": "ja-mecab", "ko": "ko-mecab"}
"""What sacreBLEU takes for languages whose words have no blanks between them, or none that are words alone."""


@dataclass(frozen=True)
class ModelConfig:
    """Shape of the network. Sizes are features per position."""

    cell: Cell = "lstm"
    """Recurrent cell of encoder and decoder: rnn (Elman 1990), gru (Cho et al. 2014), gru_v2 (reset after the product,
    as cuDNN), lstm (Gers et al. 2000), layer_norm_lstm and layer_norm_gru (Ba et al. 2016), min_lstm and min_gru (Feng
    et al. 2024) or slstm (Beck et al. 2024)."""
    decoder_cell: Cell | None = None
    """The decoder's, where it is another; None for that of the encoder."""
    hidden_size: Annotated[int, SIZE] = 512
    """Features of one encoder output and of the decoder's state. A bidirectional encoder gives half of them to each
    direction."""
    embed_size: Annotated[int, SIZE] = 256
    """Features of a token's embedding, source and target."""
    num_layers: Annotated[int, Bounds(1, 32)] = 1
    """Recurrent layers in the encoder, and as many in the decoder."""
    decoder_layers: Annotated[int | None, Bounds(1, 32)] = None
    """Those of the decoder, where it has another number; None for as many."""
    encoder: Literal["stacked"] = "stacked"
    """Recurrent layers one above another."""
    bidirectional: Literal["none", "first", "all"] = "all"
    """Encoder layers that read the source in both directions: none, the first one (Wu et al. 2016) or all."""
    direction_size: Annotated[int | None, SIZE] = None
    """Features of each direction of a layer that reads in both; None for half of hidden_size, so that the two together
    have as many as any other layer."""
    residual_from: Annotated[int, Bounds(0, 32)] = 0
    """Lowest layer, counted from 1, whose output has its input added, as that of every layer above it (Wu et al. 2016,
    section 3.1), in encoder and decoder; 0 for none."""
    features: Literal["prepend", "shared", "separate", "linear"] = "prepend"
    """How the tags of data.features are read. prepend: with the source, as its first tokens. The others read both
    apart, and attention looks at both: shared by the one encoder, separate by an encoder of their own, linear by a
    linear map of their embeddings."""
    reverse_source: bool = False
    """Read the source from its last token to its first (Sutskever et al. 2014, section 3.3)."""
    decoder: Literal["luong", "bahdanau", "gnmt", "plain", "cho"] = "luong"
    """luong: the new state asks attention, and context and state make a vector (Luong et al. 2015). bahdanau: the state
    before asks, and the context enters the cell (Bahdanau et al. 2015). gnmt: the lowest layer asks, and the context
    enters all layers above it (Wu et al. 2016). plain: all that is known of the source is the first state (Sutskever et
    al. 2014). cho: the context is an input of every step; without attention it is the encoder's last state (Cho et al.
    2014)."""
    attention: Attention = "general"
    """Score of a source position: dot, general, concat and location (Luong et al. 2015), scaled_dot (Vaswani et al.
    2017), additive (Bahdanau et al. 2015), normed_additive (additive with a vector of length g and a bias, as Salimans
    and Kingma 2016 normalise weights), or none. hard_monotonic: one position a step, never before the last one, summed
    over all alignments exactly (Wu and Cotterell 2019), for small vocabularies."""
    alignment_order: Annotated[int, Bounds(0, 1)] = 0
    """Of hard_monotonic: 0, where to go is scored by the position there; 1, the jump, of window_size at most, by the
    position before."""
    attention_window: Literal["all", "local_m", "local_p"] = "all"
    """Source positions attended to: all; those around the target position; or those around a position that the decoder
    predicts (Luong et al. 2015, section 3.2)."""
    window_size: Annotated[int, Bounds(1, 10_000)] = 10
    """Positions of a local window to either side of its middle, D in Luong et al. 2015."""
    attention_heads: Annotated[int, Bounds(1, 256)] = 1
    """Heads of dot, scaled_dot and additive attention, each over its own projection (Vaswani et al. 2017, 3.2.2)."""
    attention_positions: Annotated[int, Bounds(1, 10_000)] = 100
    """Source positions, from the first, that location attention has weights for; it attends to no others."""
    coverage: bool = False
    """Tell additive attention how much attention each position has had (See et al. 2017, section 2.3)."""
    input_feeding: bool = True
    """Feed the attentional vector to the next step of the luong decoder (Luong et al. 2015, section 3.3)."""
    context_feedback: bool = False
    """gnmt: the state before asks, and the context enters the lowest layer too (Wu et al. 2016, equation 4)."""
    bridge: Literal["copy", "dense", "mean", "zero"] = "copy"
    """Decoder's first state: the encoder's last one as it is, through a tanh layer, a tanh layer of the mean of its
    outputs, or zeros."""
    output: Literal["luong", "linear", "deep"] = "luong"
    """What the output layer reads. luong: tanh(W [context; state]) (Luong et al. 2015, equation 5). linear: the state,
    and beside it the context where no cell has it. deep: a maxout layer of state, context and the embedding of the
    token before (Bahdanau et al. 2015, appendix A.2.2)."""
    copy: bool = False
    """Let the next token also be copied from the source, words that the vocabulary lacks too: a mixture of the output
    layer and of attention (pointer-generator, See et al. 2017, section 2.2)."""
    dropout_rate: Annotated[float, SHARE] = 0.2
    """Share of features dropped at the embeddings, between layers and at the output, in training only (Srivastava et
    al. 2014). This and the other rates act to the nearest 1/256."""
    embedding_dropout_rate: Annotated[float | None, SHARE] = None
    """That at the embeddings; None for dropout_rate."""
    layer_dropout_rate: Annotated[float | None, SHARE] = None
    """That between layers (Zaremba et al. 2014); None for dropout_rate."""
    output_dropout_rate: Annotated[float | None, SHARE] = None
    """That of the vector that the output layer reads; None for dropout_rate."""
    state_dropout_rate: Annotated[float, SHARE] = 0.0
    """Share of a layer's state h dropped where it enters the products of the next step (Gal and Ghahramani 2016)."""
    recurrent_dropout_rate: Annotated[float, SHARE] = 0.0
    """Share dropped of what a step adds to the memory, which itself loses nothing (Semeniuta et al. 2016)."""
    word_dropout_rate: Annotated[float, SHARE] = 0.0
    """Share of source and target words whose whole embedding is dropped; the others are scaled up (Sennrich et al.
    2016, Edinburgh's systems for WMT)."""
    variational_dropout: bool = False
    """Drop the same features at all steps of a sequence, and of words all places (Gal and Ghahramani 2016); otherwise
    every step draws anew."""
    zoneout_cell_rate: Annotated[float, SHARE] = 0.0
    """Probability that a unit of the memory c keeps its old value at a step of training; in evaluation and search it
    takes the expected value (Krueger et al. 2017). slstm: c, n and m of a unit at once."""
    zoneout_hidden_rate: Annotated[float, SHARE] = 0.0
    """The same of the state h."""
    weight_dropout_rate: Annotated[float, SHARE] = 0.0
    """Share of recurrent weights dropped in an update, the same ones for the whole batch (Merity et al. 2018)."""
    tied_embeddings: Ties = "none"
    """Tables that are one and the same: source and target, target and output layer, or all three."""
    source_vectors: str | None = None
    """File of word vectors, as word2vec and GloVe write them, that the source table starts from where it has them."""
    target_vectors: str | None = None
    """The same for the target table."""
    freeze_vectors: bool = False
    """Keep a table that starts from vectors as it is at the start, rows included that the file lacks."""
    initializer: Literal["uniform", "orthogonal"] = "uniform"
    """uniform: every weight from ±init_scale. orthogonal: recurrent matrices orthogonal per gate, the others
    Glorot uniform, embeddings normal."""
    init_scale: Annotated[float, Bounds(1e-6, 100)] = 0.1
    """Bound of the uniform initialiser."""
    forget_bias: Annotated[float, Bounds(-100, 100)] = 0.0
    """First value of the bias of lstm's forget gate; 1 after Jozefowicz et al. 2015."""
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of products and activations. Parameters, cell state and losses stay float32."""

    def __post_init__(self) -> None:
        _check("model.", self)
        _check_encoder(self)
        _check_attention(self)
        _check_decoder(self)
        _check_regularizers(self)
        _check_vectors(self)


def _check_encoder(model: ModelConfig) -> None:
    if model.direction_size and model.bidirectional == "none":
        raise UserError(
            f"model.direction_size {model.direction_size} is of layers in both directions, and model.bidirectional is"
            " none; set model.direction_size None."
        )
    if model.bidirectional != "none" and model.hidden_size % 2 and not model.direction_size:
        raise UserError(
            f"model.hidden_size {model.hidden_size} is odd, and a bidirectional encoder gives half of it to each"
            f" direction; use {model.hidden_size + 1}, or model.bidirectional none."
        )
    if model.reverse_source and model.bidirectional == "all":
        raise UserError(
            "model.reverse_source changes nothing where model.bidirectional is all; set model.bidirectional none or"
            " first, or model.reverse_source False."
        )
    if model.reverse_source and model.features != "prepend":
        raise UserError(
            f"model.reverse_source turns round what one encoder reads, and model.features is {model.features}; set"
            " model.features prepend, or model.reverse_source False."
        )
    top = max(model.num_layers, model.decoder_layers or 1)
    if model.residual_from > top:
        raise UserError(f"model.residual_from {model.residual_from} is above the top one of model.num_layers {top}.")
    if model.residual_from == 1 and model.embed_size != model.hidden_size:
        raise UserError(
            f"model.residual_from 1 adds embeddings to the lowest layer's output: model.embed_size {model.embed_size}"
            f" must be model.hidden_size {model.hidden_size}; or start from layer 2."
        )
    inputs = [model.embed_size, *encoder_sizes(model)]
    for depth, (given, made) in enumerate(itertools.pairwise(inputs), 1):
        if 0 < model.residual_from <= depth and given != made:
            raise UserError(
                f"model.residual_from {model.residual_from} adds the {given} inputs of encoder layer {depth} to its"
                f" {made} outputs, with model.direction_size {model.direction_size}; start from a layer above it."
            )


def encoder_sizes(model: ModelConfig) -> list[int]:
    """Features that each layer of the encoder puts out, its directions together."""
    both = 2 * model.direction_size if model.direction_size else model.hidden_size
    return [both if reads_both_ways(model, depth) else model.hidden_size for depth in range(model.num_layers)]


def reads_both_ways(model: ModelConfig, depth: int) -> bool:
    """Whether an encoder layer, counted from 0, reads in both directions."""
    return model.bidirectional == "all" or (model.bidirectional == "first" and depth == 0)


def _check_attention(model: ModelConfig) -> None:
    kind = f"model.attention is {model.attention}"
    if model.attention == "none":
        for name, off in (("attention_window", "all"), ("attention_heads", 1), ("coverage", False)):
            if (value := getattr(model, name)) != off:
                raise UserError(f"model.{name} {value} acts on attention, and {kind}; set model.{name} {off}.")
        if model.copy:
            raise UserError(f"model.copy True copies by attention, and {kind}; set model.copy False.")
    if model.copy and model.attention_window == "local_p":
        raise UserError(
            "model.copy True copies with the weights of attention, and those of model.attention_window local_p do not"
            " sum to 1; set model.attention_window all or local_m."
        )
    if model.attention == "hard_monotonic":
        _check_hard_monotonic(model)
    elif model.alignment_order:
        raise UserError(f"model.alignment_order 1 is of hard_monotonic, and {kind}; set model.alignment_order 0.")
    size = encoder_sizes(model)[-1]
    if model.attention in ("dot", "scaled_dot") and model.attention_heads == 1 and size != model.hidden_size:
        raise UserError(
            f"{kind}, of a state of model.hidden_size {model.hidden_size} and encoder outputs of {size}, twice"
            " model.direction_size; they must be equal, or set model.attention general."
        )
    if model.attention_heads > 1:
        if model.attention not in ("dot", "scaled_dot", "additive"):
            raise UserError(
                f"model.attention_heads {model.attention_heads} go with dot, scaled_dot and additive, and {kind};"
                f" set model.attention_heads 1."
            )
        if model.hidden_size % model.attention_heads or size % model.attention_heads:
            raise UserError(
                f"model.attention_heads {model.attention_heads} do not divide model.hidden_size {model.hidden_size} and"
                f" the {size} features of an encoder output."
            )
    if model.coverage and (model.attention not in ("additive", "normed_additive") or model.attention_heads > 1):
        raise UserError(
            f"model.coverage is a term of additive and normed_additive scores of one head; {kind}, with"
            f" model.attention_heads {model.attention_heads}."
        )


def _check_hard_monotonic(model: ModelConfig) -> None:
    needed = {
        "decoder": ("luong",),
        "input_feeding": (False,),
        "output": ("luong", "deep"),
        "attention_window": ("all",),
        "copy": (False,),
    }
    for name, values in needed.items():
        if (value := getattr(model, name)) not in values:
            raise UserError(
                "model.attention hard_monotonic sums over all alignments, of which the decoder must not know; it goes"
                f" with model.{name} {' or '.join(map(str, values))}, not {value}."
            )


def _check_decoder(model: ModelConfig) -> None:
    kind = f"model.decoder is {model.decoder}"
    if model.decoder in ("bahdanau", "gnmt") and model.attention == "none":
        raise UserError(
            f"{kind}, which attends, and model.attention is none; choose one, or model.decoder cho or plain."
        )
    if model.decoder == "plain" and model.attention != "none":
        raise UserError(f"{kind}, which has no attention; set model.attention none.")
    layers = model.decoder_layers or model.num_layers
    if model.decoder == "gnmt" and layers == 1:
        raise UserError(f"{kind}: its context enters the layers above the lowest; set model.num_layers 2 or more.")
    if layers != model.num_layers and model.bridge in ("copy", "dense"):
        raise UserError(
            f"model.bridge {model.bridge} gives every layer of the decoder the state of one of the encoder, and there"
            f" are {model.num_layers} and model.decoder_layers {layers}; set model.bridge mean or zero."
        )
    if model.input_feeding and (model.decoder != "luong" or model.attention == "none"):
        reason = kind if model.decoder != "luong" else "model.attention is none"
        raise UserError(
            f"model.input_feeding feeds the attentional vector of the luong decoder back, and {reason};"
            " set model.input_feeding False."
        )
    if model.context_feedback and model.decoder != "gnmt":
        raise UserError(f"model.context_feedback is of the gnmt decoder, and {kind}; set model.context_feedback False.")
    cell = model.decoder_cell or model.cell
    if model.bridge == "copy" and STATE_PARTS[cell] != STATE_PARTS[model.cell]:
        raise UserError(
            f"model.bridge copy hands a state of {model.cell} on to {cell}, which has another; set model.bridge dense,"
            " mean or zero, or one cell for both."
        )
    if model.bridge == "copy" and set(encoder_sizes(model)) != {model.hidden_size}:
        raise UserError(
            f"model.bridge copy hands states of twice model.direction_size {model.direction_size} on to layers of"
            f" model.hidden_size {model.hidden_size}; set model.bridge dense, mean or zero."
        )
    if model.bridge == "dense" and cell == "slstm":
        raise UserError("model.bridge dense makes states that slstm cannot have; set model.bridge copy, mean or zero.")
    if model.output == "linear" and model.tied_embeddings in ("target_output", "all"):
        size = linear_size(model)
        if size != model.embed_size:
            raise UserError(
                f"model.tied_embeddings {model.tied_embeddings} with model.output linear reads vectors of {size}"
                f" features by embeddings of model.embed_size {model.embed_size}; they must be equal, or set"
                " model.output luong or deep."
            )


def _check_vectors(model: ModelConfig) -> None:
    files, ties = {model.source_vectors, model.target_vectors} - {None}, model.tied_embeddings
    if ties in ("source_target", "all") and len(files) > 1:
        raise UserError(
            f"model.tied_embeddings {ties} makes one table of source and target, which cannot start from both"
            f" model.source_vectors {model.source_vectors} and model.target_vectors {model.target_vectors}; give one."
        )
    if not model.freeze_vectors:
        return
    if not files:
        raise UserError(
            "model.freeze_vectors keeps a table that starts from model.source_vectors or model.target_vectors, and"
            " neither is set; set one, or model.freeze_vectors False."
        )
    if ties == "all" or (ties == "target_output" and model.target_vectors):
        raise UserError(
            f"model.freeze_vectors keeps a table that model.tied_embeddings {ties} shares with the output layer, which"
            " has to learn; set model.tied_embeddings none or source_target, or model.freeze_vectors False."
        )


def linear_size(model: ModelConfig) -> int:
    """Features that a linear output layer reads."""
    context = encoder_sizes(model)[-1] if model.decoder == "luong" and model.attention != "none" else 0
    return model.hidden_size + context


def _check_regularizers(model: ModelConfig) -> None:
    for name in ("cell", "decoder_cell"):
        cell = getattr(model, name)
        no_product = cell in WITHOUT_RECURRENT_WEIGHTS
        lacks = {
            "state_dropout_rate": (no_product, "products of the state; use model.zoneout_hidden_rate"),
            "weight_dropout_rate": (no_product, "recurrent weights; use model.zoneout_hidden_rate"),
            "recurrent_dropout_rate": (cell == "rnn", "a memory that a step adds to; use model.state_dropout_rate"),
            "zoneout_cell_rate": (
                STATE_PARTS.get(cell) == ("h",),
                "a memory besides its state; use model.zoneout_hidden_rate",
            ),
        }
        for rate, (lacking, what) in lacks.items():
            if lacking and getattr(model, rate):
                raise UserError(
                    f"model.{rate} {getattr(model, rate)} acts on what model.{name} {cell} does not have, {what}, or"
                    f" set model.{rate} 0."
                )
    if model.layer_dropout_rate and max(model.num_layers, model.decoder_layers or 1) == 1:
        raise UserError(
            f"model.layer_dropout_rate {model.layer_dropout_rate} is of what goes from layer to layer, and"
            " model.num_layers is 1; set model.layer_dropout_rate None."
        )
    if model.variational_dropout and not any(_rates(model)):
        raise UserError(
            "model.variational_dropout says how model.dropout_rate and its like act, and all of them are 0; set one, or"
            " model.variational_dropout False."
        )


def _rates(model: ModelConfig) -> list[float | None]:
    """Those of dropout that acts at the steps of a sequence."""
    places = model.embedding_dropout_rate, model.layer_dropout_rate, model.output_dropout_rate
    common = model.dropout_rate if None in places else 0
    return [common, *places, model.state_dropout_rate, model.recurrent_dropout_rate, model.word_dropout_rate]


@dataclass(frozen=True)
class DataConfig:
    """Corpus, vocabulary and batches."""

    corpus: str = "scan/simple"
    """scan/simple, scan/length, scan/addprim_jump, scan/addprim_turn_left, formal/parity, formal/modular_arithmetic,
    formal/reverse, formal/duplicate, files:DIR, or the name of a dataset of TFDS, or of one in docs/recipes.md."""
    source: str | None = None
    """Column (feature) that is read; by default the corpus's own first key."""
    target: str | None = None
    """Column (feature) that is written; by default the corpus's own second key."""
    train_split: str = "train"
    """Split that is trained on, where a corpus has several, such as train-low and train-high."""
    columns: tuple[str, ...] = ()
    """Names of the columns of SPLIT.tsv files, left to right."""
    features: str | None = None
    """Column of tags that go with the source, such as V;PST in morphological inflection. Each is a symbol of its own,
    before those of the source, see model.features."""
    features_separator: str = ";"
    """What stands between two tags."""
    turns: str | None = None
    """Column that says where a source stands in a dialogue: the dialogue, a tab or blank, and its position among all
    utterances, from 0; the target is the utterance after it."""
    context_turns: Annotated[int, Bounds(0, 1_000)] = 0
    """Turns before the source that are read with it, the oldest first, with a symbol of their own between them; by
    data.turns. Where a source is longer than max_length with them, the oldest are left out, and counted."""
    hallucinate: Annotated[int, Bounds(0, 10_000_000)] = 0
    """Pairs to add to train, whose words are invented: what source and target have in common, with other characters
    (Anastasopoulos and Neubig 2019). For inflection with little text."""
    train_files: tuple[str, str] | None = None
    """Source and target file of the training split, instead of a corpus."""
    validation_files: tuple[str, str] | None = None
    """Source and target file of the validation split; without it one is cut from train."""
    test_files: tuple[str, str] | None = None
    """Source and target file of the test split."""
    data_dir: str | None = None
    """Where prepared corpora are kept; by default the user's cache directory."""
    lowercase: bool = False
    """Lowercase both sides before anything else. BLEU, chrF and exact match then compare with lowercased references."""
    group_references: bool = False
    """Take the lines of a validation or test split that have the same source (and tags) for one item with several
    references: it is decoded once, and any of them may be matched. Training pairs and losses stay line by line."""
    vocabulary: VocabularyKind = "unigram"
    """unigram and bpe are SentencePiece models; words splits at blanks."""
    target_vocabulary: VocabularyKind | None = None
    """That of the target, where it is another, as in spelling to sound: characters to words, which are the phones. None
    for that of vocabulary."""
    vocab_size: Annotated[int, Bounds(5, 1_000_000)] = 8000
    """Largest number of entries, special symbols included (of each side unless joint_vocabulary)."""
    vocabulary_sample: Annotated[int, Bounds(1, 1_000_000_000)] = 20_000_000
    """Characters of train from which unigram and bpe are learnt: where there are more, of blocks of 1,000 pairs in a
    fixed random order the first that make as many, the same on every machine. A character takes about 25 bytes and 0.7
    us of unigram training. Words and characters are counted in all of train."""
    joint_vocabulary: bool = True
    """One vocabulary for both sides."""
    min_frequency: Annotated[int, COUNT] = 1
    """Words and characters seen less often in train become unknown."""
    max_length: Annotated[int, POSITIONS] = 100
    """Longest training sequence in tokens, end mark included; longer pairs are left out and counted."""
    batch_size: Annotated[int | None, Bounds(1, 1_000_000)] = 64
    """Sentences per step over all devices; None when batch_tokens is set."""
    batch_tokens: Annotated[int | None, Bounds(1, 100_000_000)] = None
    """Target positions per step over all devices, padding included, instead of batch_size."""
    num_shapes: Annotated[int, Bounds(1, 256)] = 8
    """Batch shapes compiled; more shapes pad less."""

    def __post_init__(self) -> None:
        _check("data.", self)
        kinds = dict.fromkeys([self.vocabulary, self.target_vocabulary or self.vocabulary])
        if self.min_frequency > 1 and kinds.keys() <= {"unigram", "bpe"}:
            raise UserError(
                f"data.min_frequency {self.min_frequency} acts in words and characters only, and data.vocabulary is"
                f" {' and '.join(kinds)}."
            )
        if self.vocabulary_sample != DataConfig.vocabulary_sample and kinds.keys() <= {"words", "characters"}:
            raise UserError(
                f"data.vocabulary_sample {self.vocabulary_sample} acts in unigram and bpe only, and data.vocabulary is"
                f" {' and '.join(kinds)}, which are counted in all of train; leave it out."
            )
        if len(kinds) > 1 and self.joint_vocabulary:
            raise UserError(
                f"data.target_vocabulary {self.target_vocabulary} is not data.vocabulary {self.vocabulary}, and"
                " data.joint_vocabulary True makes one vocabulary for both sides; set data.joint_vocabulary False, or"
                " data.target_vocabulary None."
            )
        if (self.batch_size is None) == (self.batch_tokens is None):
            raise UserError(
                f"Set exactly one of data.batch_size ({self.batch_size}) and data.batch_tokens ({self.batch_tokens});"
                " give the other the value None."
            )
        if (self.validation_files or self.test_files) and not self.train_files:
            raise UserError("data.validation_files and data.test_files go with data.train_files, which is not set.")
        if self.features and self.train_files:
            raise UserError(
                f"data.features {self.features} is a column of data.corpus, and data.train_files are two files; put"
                f" train.{self.features} beside them into a folder, and set data.corpus files:FOLDER."
            )
        _check_turns(self)
        kinds = {self.vocabulary, self.target_vocabulary or self.vocabulary}
        if self.hallucinate and kinds != {"characters"}:
            other = min(kinds - {"characters"})
            raise UserError(
                f"data.hallucinate {self.hallucinate} invents words of characters, and the vocabulary is {other}; set"
                " data.vocabulary characters, or data.hallucinate 0."
            )
        if "\t" in self.features_separator:
            raise UserError("data.features_separator has a tab, which stands between a source and its tags.")


def _check_turns(data: DataConfig) -> None:
    if not data.context_turns:
        return
    given = f"data.context_turns {data.context_turns} puts turns of a dialogue before the source"
    if data.train_files:
        raise UserError(
            f"{given} by a column of data.corpus, and data.train_files are two files; put train.{data.turns or 'turn'}"
            f" beside them into a folder, and set data.corpus files:FOLDER and data.turns {data.turns or 'turn'}."
        )
    if not data.turns:
        raise UserError(f"{given} by the column data.turns, which is not set; name it, or set data.context_turns 0.")
    if data.features:
        raise UserError(
            f"{given}, and data.features {data.features} puts tags behind it; set one of them, data.context_turns 0 or"
            " data.features None."
        )
    if not data.joint_vocabulary:
        raise UserError(
            f"{given}, so what is written is read later: it needs one vocabulary for both. Set data.joint_vocabulary"
            " True, or data.context_turns 0."
        )


@dataclass(frozen=True)
class OptimizerConfig:
    """Optimizer, learning rate and clipping."""

    name: Literal["adam", "adamw", "sgd", "adafactor"] = "adam"
    """Update rule (Optax)."""
    learning_rate: Annotated[float, Bounds(1e-12, 1_000)] = 1e-3
    """Peak learning rate."""
    schedule: Literal["constant", "inverse_sqrt", "cosine", "plateau", "halving"] = "constant"
    """After warm-up: constant; falling with the inverse square root of the step; a
    half cosine to zero at train.num_steps; multiplied by plateau_factor when validation stops improving; halved at
    halving_start and every halving_every steps after it."""
    warmup_steps: Annotated[int, COUNT_OR_NONE] = 0
    """Steps of linear rise from zero to learning_rate."""
    plateau_factor: Annotated[float, Bounds(0.001, 0.999)] = 0.5
    """What the plateau schedule multiplies the learning rate by."""
    plateau_patience: Annotated[int, COUNT] = 1
    """Evaluations without improvement before the plateau schedule acts."""
    halving_start: Annotated[int | None, COUNT] = None
    """Step from which the halving schedule has half the learning rate; after 5 epochs in Sutskever et al. 2014, section
    3.4, and Luong et al. 2015, section 4.1."""
    halving_every: Annotated[int | None, COUNT] = None
    """Steps between one halving and the next; half an epoch and an epoch there."""
    clip_norm: Annotated[float, Bounds(0, 1_000_000_000)] = 5.0
    """Largest global gradient norm; 0 for no clipping."""
    momentum: Annotated[float, SHARE] = 0.0
    """Momentum of sgd."""
    beta1: Annotated[float, SHARE] = 0.9
    """Decay of Adam's first moment."""
    beta2: Annotated[float, SHARE] = 0.999
    """Decay of Adam's second moment."""
    weight_decay: Annotated[float, Bounds(0, 100)] = 0.0
    """Decoupled weight decay of adamw, for matrices only."""

    def __post_init__(self) -> None:
        _check("optimizer.", self)
        if self.weight_decay and self.name != "adamw":
            raise UserError(
                f"optimizer.weight_decay {self.weight_decay} acts in adamw only, and optimizer.name is {self.name}."
            )
        _check_halving(self)


def _check_halving(optimizer: OptimizerConfig) -> None:
    for name in ("halving_start", "halving_every"):
        value = getattr(optimizer, name)
        if optimizer.schedule == "halving" and value is None:
            raise UserError(f"optimizer.schedule halving needs optimizer.{name}, a number of steps.")
        if optimizer.schedule != "halving" and value is not None:
            raise UserError(
                f"optimizer.{name} {value} acts in the halving schedule only, and optimizer.schedule is"
                f" {optimizer.schedule}; set optimizer.{name} None, or optimizer.schedule halving."
            )
    if optimizer.halving_start and optimizer.halving_start < optimizer.warmup_steps:
        raise UserError(
            f"optimizer.halving_start {optimizer.halving_start} lies within the warm-up of optimizer.warmup_steps"
            f" {optimizer.warmup_steps}; use {optimizer.warmup_steps} or more."
        )


@dataclass(frozen=True)
class TrainConfig:
    """Length of the run and what happens along it. Intervals are in steps."""

    num_steps: Annotated[int, COUNT] = 10_000
    """Updates in all."""
    evaluate_every: Annotated[int, COUNT] = 1_000
    """Steps between validations."""
    checkpoint_every: Annotated[int, COUNT] = 1_000
    """Steps between checkpoints; the last state is always saved."""
    keep_checkpoints: Annotated[int, Bounds(1, 1_000)] = 2
    """Latest checkpoints kept beside the best one. The command average takes up to so many together."""
    log_every: Annotated[int, COUNT] = 50
    """Steps between rows of metrics.jsonl."""
    seed: Annotated[int, SEED] = 0
    """Of initial values, data order and dropout."""
    shape_seed: Annotated[int | None, SEED] = None
    """Of the order in which the shapes of batches follow one another, where it is another; None for seed. The seeds of
    the command reproduce share one, that of the first, so that each is trained alone by naming it."""
    label_smoothing: Annotated[float, SHARE] = 0.0
    """Share of probability spread evenly over the vocabulary (Szegedy et al. 2016)."""
    coverage_loss: Annotated[float, Bounds(0, 1_000)] = 0.0
    """Weight in the loss of attention to what has had it before, for model.coverage (See et al. 2017, equation 13; they
    use 1)."""
    ema: Annotated[float, SHARE] = 0.0
    """Decay of an exponential moving average of the parameters (Kingma and Ba 2015, section 7.2), say 0.999, which then
    is what is validated, tested and translated with; 0 for none."""
    accumulate_steps: Annotated[int, Bounds(1, 1_000_000)] = 1
    """Parts a batch is cut into, one after another, to save memory."""
    rematerialize_every: Annotated[int, COUNT_OR_NONE] = 0
    """For long sequences: keep only the states at every so many positions and compute what lies between them again in
    the backward pass. A few hundred at most; 0 keeps everything."""
    best_metric: Literal["loss", "bleu", "chrf", "exact_match"] = "loss"
    """Validation metric by which the best checkpoint is kept, the plateau schedule acts and training stops early."""
    early_stopping: Annotated[int, COUNT_OR_NONE] = 0
    """Stop after so many evaluations without improvement; 0 for never."""
    decode_sentences: Annotated[int, COUNT_OR_NONE] = 1_000
    """Validation sentences decoded greedily at each evaluation; 0 for none."""
    num_samples: Annotated[int, COUNT_OR_NONE] = 3
    """Decoded sentences shown at each evaluation."""
    max_nonfinite_steps: Annotated[int, COUNT] = 20
    """Stop after so many updates in a row whose losses or gradients are not finite; they are skipped."""
    trackers: tuple[Tracking, ...] = ()
    """Services that get every row of metrics.jsonl too: wandb (Weights & Biases), mlflow; each an extra."""
    init_from: str | None = None
    """Run directory whose best parameters and vocabularies this run starts from: to train longer, or on other text."""
    grow_vocabulary: bool = False
    """Add the words or characters of the text here that the vocabularies of init_from lack; their rows start at the
    mean of the others."""
    freeze: tuple[str, ...] = ()
    """Parts of the model that stay as they are at the start: source_table, target_table, encoder, bridge, decoder,
    output."""

    def __post_init__(self) -> None:
        _check("train.", self)
        if self.grow_vocabulary and self.init_from is None:
            raise UserError("train.grow_vocabulary is of a run that starts from another; set train.init_from.")
        if self.best_metric != "loss" and not self.decode_sentences:
            raise UserError(
                f"train.best_metric {self.best_metric} needs decoded sentences, and train.decode_sentences is 0."
            )


@dataclass(frozen=True)
class ObjectiveConfig:
    """What training minimises."""

    name: Literal["likelihood", "scheduled_sampling", "minimum_risk", "self_critical"] = "likelihood"
    """likelihood: cross-entropy of each target token given those before it. scheduled_sampling: given tokens of which
    more and more are what the model writes itself (Bengio et al. 2015). minimum_risk: the expected loss of whole
    outputs by reward (Shen et al. 2016). self_critical: outputs are made likelier that have more of it than what greedy
    search writes (Rennie et al. 2017). The last two are for a model that can write: start it by train.init_from."""
    decay: Literal["linear", "exponential", "inverse_sigmoid", "none"] = "inverse_sigmoid"
    """Of scheduled_sampling: how the share of right tokens that the decoder is given falls from 1 with the step (Bengio
    et al. 2015, section 2.4). none: it is least_right from the first step on."""
    half_right_step: Annotated[int, COUNT] = 1_000
    """Step at which the decay has brought that share to one half."""
    least_right: Annotated[float, Bounds(0, 1)] = 0.0
    """What the share does not fall below."""
    draw: Literal["sample", "best"] = "sample"
    """Of scheduled_sampling: whether the model's own tokens are drawn by their probability, or the likeliest ones."""
    unlikelihood: Annotated[float, Bounds(0, 1_000)] = 0.0
    """Weight, beside cross-entropy, of a term that makes tokens unlikely that stand before in the target (Welleck et
    al. 2020, equation 4): against outputs that repeat themselves."""
    num_candidates: Annotated[int, Bounds(1, 10_000)] = 20
    """Of minimum_risk and self_critical: outputs drawn of each source; 100 in Shen et al. 2016, one in Rennie et al.
    2017. Memory and time grow with it; train.accumulate_steps saves memory."""
    sharpness: Annotated[float, Bounds(1e-9, 1_000)] = 0.005
    """Of minimum_risk: exponent alpha of the candidates' probabilities (Shen et al. 2016, equation 11)."""
    reward: Literal["bleu", "edit_similarity", "exact_match"] = "bleu"
    """Of minimum_risk and self_critical: how good an output is, from its tokens as the vocabulary cuts them. bleu: of
    sentences, with one added to counts of longer n-grams (Lin and Och 2004). edit_similarity: 1 less the share of
    tokens to change."""

    def __post_init__(self) -> None:
        _check("objective.", self)
        for name, objectives in OBJECTIVES_OF.items():
            value = getattr(self, name)
            if self.name not in objectives and value != getattr(ObjectiveConfig, name):
                whose = " or ".join(objectives)
                raise UserError(
                    f"objective.{name} {value} is of objective.name {whose}, which is {self.name}; leave one out."
                )
        if self.name == "scheduled_sampling" and self.decay == "none":
            if self.half_right_step != ObjectiveConfig.half_right_step:
                raise UserError(
                    f"objective.half_right_step {self.half_right_step} is of a decay, and objective.decay is none;"
                    " leave one out."
                )


OF_SENTENCES = "minimum_risk", "self_critical"
"""Objectives that look at whole outputs."""
OBJECTIVES_OF = {
    "decay": ("scheduled_sampling",),
    "half_right_step": ("scheduled_sampling",),
    "least_right": ("scheduled_sampling",),
    "draw": ("scheduled_sampling",),
    "unlikelihood": ("likelihood", "scheduled_sampling"),
    "num_candidates": OF_SENTENCES,
    "sharpness": ("minimum_risk",),
    "reward": OF_SENTENCES,
}
"""Fields of `ObjectiveConfig`, and the objectives that they belong to."""
SAMPLING = ("temperature", "top_k", "top_p", "seed")
"""Fields of `DecodeConfig` that say how outputs are drawn."""


@dataclass(frozen=True)
class DecodeConfig:
    """Search at test time."""

    beam_size: Annotated[int, Bounds(1, 1_000)] = 5
    """Hypotheses kept per sentence; 1 is greedy search."""
    length_penalty: Annotated[float, Bounds(0, 10)] = 1.0
    """Exponent alpha of Wu et al. 2016, section 7; 0 compares plain log-probabilities."""
    max_length_ratio: Annotated[float, Bounds(0.01, 1_000)] = 2.0
    """Longest output: this many times the source's tokens, and ten more."""
    batch_size: Annotated[int, Bounds(1, 100_000)] = 32
    """Sentences decoded at once."""
    ensemble: Mixture = "linear"
    """What several runs, given together, make of the next token: linear, the mean of their probabilities; or
    log_linear, that of their log-probabilities, by which each of them can rule a token out."""
    groups: Annotated[int, Bounds(1, 1_000)] = 1
    """Groups of the beam that differ (diverse beam search, Vijayakumar et al. 2018), each with an equal part of
    beam_size: for --num-best outputs that are not all alike."""
    diversity: Annotated[float, Bounds(0, 100)] = 0.5
    """What a group takes off a token, in nats, for each hypothesis of the groups before it that wrote it there."""
    coverage_penalty: Annotated[float, Bounds(0, 10)] = 0.0
    """Strength beta of Wu et al. 2016, equation 14, by which outputs lose that attend to parts of the source too
    little; 0 for none."""
    min_length: Annotated[int, Bounds(0, 10_000)] = 0
    """Tokens that every output has, at least."""
    no_repeat_ngram: Annotated[int, Bounds(0, 100)] = 0
    """No sequence of so many tokens comes twice in an output (Paulus et al. 2018, with 3); 0 allows it."""
    avoid: tuple[str, ...] = ()
    """Words or phrases that no output has, cut into tokens as the target vocabulary cuts them."""
    replace_unknown: bool = False
    """Write, for an unknown word, the source word attended to most (Luong et al. 2015, section 2.2 of "Addressing the
    Rare Word Problem")."""
    sample: bool = False
    """Draw outputs at random, one, or as many as --num-best, instead of searching for likely ones."""
    temperature: Annotated[float, Bounds(0.01, 100)] = 1.0
    """Of what is drawn: each probability to the power of its inverse; below 1 likely tokens gain."""
    top_k: Annotated[int, Bounds(0, 1_000_000)] = 0
    """Draw from so many likeliest tokens (Fan et al. 2018); 0 for all."""
    top_p: Annotated[float, Bounds(0.0001, 1)] = 1.0
    """Draw from the fewest likeliest tokens that have this probability together (Holtzman et al. 2020); 1 for all."""
    seed: Annotated[int, SEED] = 0
    """Of what is drawn: a line's output depends on this, its text and its number."""

    @property
    def search(self) -> str:
        """What it is called."""
        if self.sample:
            return "drawn at random"
        return "greedy" if self.beam_size == 1 else f"beam {self.beam_size}"

    def __post_init__(self) -> None:
        _check("decode.", self)
        self._check_sampling()
        if self.beam_size % self.groups:
            raise UserError(
                f"decode.groups {self.groups} does not divide decode.beam_size {self.beam_size}; use decode.beam_size"
                f" {-(-self.beam_size // self.groups) * self.groups}."
            )
        if self.batch_size * self.beam_size > MOST_HYPOTHESES:
            raise UserError(
                f"decode.batch_size {self.batch_size} times decode.beam_size {self.beam_size} is more than"
                f" {MOST_HYPOTHESES:,} hypotheses at once; use decode.batch_size {MOST_HYPOTHESES // self.beam_size}."
            )

    def _check_sampling(self) -> None:
        if self.sample:
            for name in ("groups", "coverage_penalty"):
                if getattr(self, name) != getattr(DecodeConfig, name):
                    raise UserError(f"decode.{name} is of beam search, and decode.sample is True; leave one out.")
            return
        for name in SAMPLING:
            if (value := getattr(self, name)) != getattr(DecodeConfig, name):
                raise UserError(f"decode.{name} {value} is of what is drawn; it goes with decode.sample True.")


def greedy(decode: DecodeConfig) -> DecodeConfig:
    """The same settings with greedy search in the place of a beam or of drawing."""
    default = {name: getattr(DecodeConfig, name) for name in (*SAMPLING, "groups", "coverage_penalty")}
    return dataclasses.replace(decode, beam_size=1, sample=False, **default)


def check_num_best(num_best: int, decode: DecodeConfig) -> None:
    """Refuses more hypotheses of a sentence than a search finds.

    Raises:
      UserError: names both settings.
    """
    if num_best < 1:
        raise UserError(f"--num-best must be 1 or more, got {num_best}.")
    if decode.sample:
        return
    if decode.beam_size == 1:
        raise UserError(
            f"--num-best {num_best} lists what a beam search finds, and decode.beam_size is 1, which is greedy search;"
            f" set --decode.beam-size {max(num_best, 2)} or more."
        )
    if num_best > decode.beam_size:
        raise UserError(
            f"--num-best {num_best} is more than the hypotheses that are kept, decode.beam_size {decode.beam_size};"
            f" set --decode.beam-size {num_best} or more."
        )


@dataclass(frozen=True)
class MeshConfig:
    """Devices."""

    data: Annotated[int | None, SIZE] = None
    """Groups of devices, each of which holds the parameters and what the optimizer keeps of them; by default as many
    as the devices of all processes make."""
    fsdp: Annotated[int, SIZE] = 1
    """Devices of a group, which share both: each holds a part, and all of the parameters during a step alone. All
    devices of all groups share each batch."""
    model: Annotated[int, SIZE] = 1
    """Devices that share the rows of tables by word: embeddings and output layer. Each holds some words, all step long,
    and the others' tokens are brought to it; for vocabularies larger than the tokens of a step."""

    def __post_init__(self) -> None:
        _check("mesh.", self)


@dataclass(frozen=True)
class Config:
    """One experiment."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    decode: DecodeConfig = field(default_factory=DecodeConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    bleu_tokenizer: BleuTokenizer | None = None
    """What cuts text into the tokens that BLEU counts, of sacreBLEU's: 13a for scripts with blanks between words; zh,
    char, ja-mecab or ko-mecab for others. The last two are extras: pip install 'sacrebleu[ja]' or 'sacrebleu[ko]'. By
    default that of data.target where it is called zh, ja or ko, as sacreBLEU has it, and else 13a."""
    moses_language: str | None = None
    """Language of the target (en, de, ...), to report BLEU by the protocol of the WMT multimodal task too."""
    metrics: tuple[FurtherMetric, ...] = ()
    """Scores reported beside BLEU, chrF and exact match. rouge: F1 of ROUGE-1, -2 and -L (Lin 2004), an extra: pip
    install 'seq2seq-jax[rouge]'. token_errors: wrong tokens and wrong sequences in percent, PER and WER of spelling to
    sound. edit_distance: characters to change in an output, on average. distinct: different words and pairs of them
    among all that is written (Li et al. 2016)."""
    published: Annotated[str, MAY_BE_EMPTY] = ""
    """Published result of the same experiment, printed beside the final score."""
    published_metric: PublishedMetric | None = None
    """The score that it is of, for the verdict of the command reproduce."""
    published_score: Annotated[float | None, Bounds(0, 1_000_000)] = None
    """Its value, in percent or as the metric has it."""
    published_band: Annotated[float | None, Bounds(0, 1_000_000)] = None
    """How far from it a mean over seeds still reproduces it; None for one standard deviation of the seeds."""
    published_split: str | None = None
    """The test split that it was scored on; None where there is but one."""

    @property
    def tokenizer(self) -> BleuTokenizer:
        """What cuts text into the tokens that BLEU counts."""
        language = re.split("[-_]", self.data.target or "")[0].lower()
        return self.bleu_tokenizer or TOKENIZER_OF.get(language, "13a")

    def __post_init__(self) -> None:
        _check("", self)
        for name in ("source_vectors", "target_vectors"):
            if self.train.init_from is not None and getattr(self.model, name):
                raise UserError(f"train.init_from and model.{name} are both what a table starts from; leave one out.")
        if self.model.tied_embeddings in ("source_target", "all") and not self.data.joint_vocabulary:
            raise UserError(
                f"model.tied_embeddings {self.model.tied_embeddings} shares the source table with the target,"
                " which needs data.joint_vocabulary True."
            )
        if self.model.copy and not self.data.joint_vocabulary:
            raise UserError(
                "model.copy True writes tokens of the source into the target, which needs one vocabulary for both; set"
                " data.joint_vocabulary True, or model.copy False."
            )
        if self.train.coverage_loss and not self.model.coverage:
            raise UserError(
                f"train.coverage_loss {self.train.coverage_loss} weighs what model.coverage adds up, and that is False;"
                " set train.coverage_loss 0, or model.coverage True."
            )
        if self.model.features != "prepend" and not self.data.features:
            raise UserError(
                f"model.features {self.model.features} reads the tags of data.features, which is not set; name their"
                " column, or set model.features prepend."
            )
        for name, size in (("fsdp", self.mesh.fsdp), ("model", self.mesh.model)):
            if size > 1 and self.optimizer.name == "adafactor":
                raise UserError(
                    f"optimizer.name adafactor keeps sums over rows and columns of whole matrices, of which mesh.{name}"
                    f" {size} gives each device a part; set mesh.{name} 1, or another optimizer.name."
                )
        if self.mesh.model > 1 and (self.model.copy or self.model.attention == "hard_monotonic"):
            why = "copy True" if self.model.copy else "attention hard_monotonic"
            raise UserError(
                f"mesh.model {self.mesh.model} parts an output layer that is a softmax alone, which it is not with"
                f" model.{why}; set mesh.model 1."
            )
        _check_objective(self)
        _check_published(self)
        if self.optimizer.schedule == "cosine" and self.optimizer.warmup_steps >= self.train.num_steps:
            raise UserError(
                f"optimizer.warmup_steps {self.optimizer.warmup_steps} leaves nothing of"
                f" train.num_steps {self.train.num_steps} for the cosine; use fewer, say"
                f" {self.train.num_steps // 20}, or more steps."
            )


def _check_objective(config: Config) -> None:
    objective = config.objective.name
    if objective == "likelihood" and not config.objective.unlikelihood:
        return
    if config.mesh.model > 1:
        raise UserError(
            f"objective.name {objective}{' with objective.unlikelihood' if objective == 'likelihood' else ''} needs all"
            f" of the vocabulary on each device, and mesh.model {config.mesh.model} gives it a part; set mesh.model 1."
        )
    if objective in OF_SENTENCES:
        for name in ("label_smoothing", "coverage_loss"):
            if value := getattr(config.train, name):
                raise UserError(
                    f"train.{name} {value} is of cross-entropy, which objective.name {objective} has none of; set"
                    f" train.{name} 0."
                )


def _check_published(config: Config) -> None:
    metric, score = config.published_metric, config.published_score
    if (metric is None) != (score is None):
        given, missing = ("score", "metric") if metric is None else ("metric", "score")
        raise UserError(
            f"published_{given} {score if metric is None else metric} needs published_{missing}: a score is"
            " compared by its metric. Give both, or neither."
        )
    for name in ("band", "split"):
        if score is None and (value := getattr(config, f"published_{name}")) is not None:
            raise UserError(
                f"published_{name} {shown(value)} belongs to a published_score, and there is none; give"
                " published_metric and published_score, or leave it out."
            )
    if score is not None and score > 100 and metric not in BEYOND_PERCENT:
        raise UserError(f"published_score {score:g} is more than 100, and {metric} is in percent.")
    if metric == "bleu_moses_lowercase" and not config.moses_language:
        raise UserError("published_metric bleu_moses_lowercase is reported with moses_language, which is not set.")
    for name, scores in FURTHER_SCORES.items():
        if metric in scores and name not in config.metrics:
            raise UserError(
                f"published_metric {metric} is reported with {name} among metrics, which are"
                f" {' '.join(config.metrics) or 'none'}; set metrics {' '.join([*config.metrics, name])}."
            )


def to_json(config: Config) -> str:
    """Returns `config` as indented JSON text, ending in a newline."""
    return json.dumps(dataclasses.asdict(config), indent=2) + "\n"


def from_json(text: str) -> Config:
    """Returns the `Config` that `to_json` wrote.

    Raises:
      UserError: the text is not JSON or has an unknown field.
    """
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:  # ValueError: not JSON, or a number of thousands of digits
        raise UserError(f"not a configuration: {error}") from error
    if isinstance(values, dict):
        _renew(values)
    return _build(Config, values, "")


def _renew(values: dict[str, Any]) -> None:
    """Writes in today's words what older versions wrote otherwise."""
    for name in ("version", "checksum"):  # of a run directory, which keeps them beside the settings
        values.pop(name, None)
    if values.get("published", "") is None:  # where the task was not the published one
        values["published"] = ""
    model = values.get("model")
    if isinstance(model, dict) and isinstance(model.get("bidirectional"), bool):
        model["bidirectional"] = "all" if model["bidirectional"] else "none"


def differences(old: Config, new: Config) -> list[str]:
    """Returns a line `section.field: old -> new` for each field that differs."""
    flat_old, flat_new = flat(old), flat(new)
    changed = [name for name in flat_old if flat_old[name] != flat_new[name]]
    return [f"{name}: {flat_old[name]!r} -> {flat_new[name]!r}" for name in changed]


def flat(config: Any, prefix: str = "") -> dict[str, Any]:
    """Returns every field of a configuration under its name, such as `model.cell`."""
    found: dict[str, Any] = {}
    for item in dataclasses.fields(config):
        value = getattr(config, item.name)
        if dataclasses.is_dataclass(value):
            found |= flat(value, f"{prefix}{item.name}.")
        else:
            found[prefix + item.name] = value
    return found


def _build(cls: Any, values: Any, prefix: str) -> Any:
    if not isinstance(values, dict):
        raise UserError(
            f"not a configuration: {prefix.rstrip('.') or 'it'} must be a group of fields, got {shown(values)}"
        )
    hints = get_type_hints(cls)
    arguments = {}
    for name, value in values.items():
        if name not in hints:
            raise UserError(
                f"Unknown config field {shortened(prefix + name)}."
                f"{did_you_mean(prefix + name, [prefix + hint for hint in hints])}"
            )
        if dataclasses.is_dataclass(hints[name]):
            value = _build(hints[name], value, f"{prefix}{name}.")
        elif isinstance(value, list):
            value = tuple(value)
        arguments[name] = value
    return cls(**arguments)


def _check(prefix: str, config: Any) -> None:
    """Refuses a value of the wrong type or beyond its bounds: a config file is Python, so nothing else does.

    Args:
      prefix: of the names of the fields, such as "model.".
      config: one of the dataclasses above.
    """
    for name, hint in get_type_hints(type(config), include_extras=True).items():
        value, field_name = getattr(config, name), prefix + name
        kind, *notes = get_args(hint) if get_origin(hint) is Annotated else [hint]
        if not _fits(value, kind):
            raise UserError(_unfit(field_name, value, kind))
        for bounds in notes:
            if isinstance(bounds, Bounds) and value is not None and not bounds.least <= value <= bounds.largest:
                least, largest = (f"{bound:,}" if isinstance(bound, int) else f"{bound:g}" for bound in bounds)
                raise UserError(f"{field_name} must be from {least} to {largest}, got {shown(value)}.")
        if MAY_BE_EMPTY not in notes and (value == "" or (isinstance(value, tuple) and "" in value)):
            raise UserError(f"{field_name} holds an empty name, got {shown(value)}; give one, or leave it out.")
        for text in value if isinstance(value, tuple) else (value,):
            if isinstance(text, str) and (flaw := not_plain(text)):
                raise UserError(f"{field_name} {flaw}, got {shown(text)}.")


def _unfit(name: str, value: object, kind: Any) -> str:
    """Returns what to say of a value of the wrong type."""
    if get_origin(kind) is tuple and get_origin(get_args(kind)[0]) is Literal:
        return _unfit_choices(name, value, [str(choice) for choice in get_args(get_args(kind)[0])])
    kinds = (kind,) if get_origin(kind) is Literal else get_args(kind)
    choices = [str(choice) for part in kinds if get_origin(part) is Literal for choice in get_args(part)]
    choices += ["None"] if choices and type(None) in kinds else []
    expected = f"one of {', '.join(choices)}" if choices else str(getattr(kind, "__name__", kind))
    hint = did_you_mean(value, choices) if isinstance(value, str) else ""
    return f"{name} must be {expected}, got {shown(value)}.{hint}"


def _unfit_choices(name: str, value: object, choices: list[str]) -> str:
    """Returns what to say of a value that is not some of `choices`."""
    given = value if isinstance(value, tuple) else (value,)
    wrong = next((item for item in given if item not in choices), None)
    hint = did_you_mean(wrong, choices) if isinstance(wrong, str) else ""
    return f"{name} must be a tuple of any of {', '.join(choices)}, got {shown(value)}.{hint}"


def _fits(value: Any, kind: Any) -> bool:
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Literal:
        return type(value) is str and value in arguments
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        if arguments[-1] is Ellipsis:
            return all(_fits(item, arguments[0]) for item in value)
        return len(value) == len(arguments) and all(map(_fits, value, arguments))
    if arguments:  # a union
        return any(_fits(value, argument) for argument in arguments)
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return type(value) is kind  # a class derived from it may do anything when it is compared or printed
