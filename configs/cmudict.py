"""CMU pronouncing dictionary, spelling to sound: the letters of a word to phones without stress.

    python train.py --config configs/cmudict.py --data.corpus files:DIR

with `train.tsv[.gz]`, `validation.tsv`, `test.tsv` in DIR: a word, a tab, phones with blanks between; a word with
several pronunciations in as many lines, all of one split. The split of the published numbers, by the rule of
cmusphinx/g2p-seq2seq: in the dictionary's order, of every twenty words the 18th and 19th are test, the 20th validation.
A word is right if its output is one of its pronunciations; `sequence_error_rate` is the share of words that are wrong.

Published (g2p-seq2seq, "CMUdict latest", no stress): LSTM of two layers of 512 units 31.14 % of words wrong, of 64
units 39.61; Phonetisaurus (a transducer of n-grams) 33.89. The dictionary has grown since, so that the words are not
quite the same.

27.73 % of the 12,604 test words wrong (beam 5, seed 0), 18 minutes of training on 2 CPU cores; docs/reproductions.md.
"""

from seq2seq_jax.config import Config, DataConfig, DecodeConfig, ModelConfig, OptimizerConfig, TrainConfig


def get_config() -> Config:
    return Config(
        model=ModelConfig(
            hidden_size=256,
            direction_size=256,
            embed_size=128,
            decoder="bahdanau",
            attention="additive",
            input_feeding=False,
            bridge="mean",
            output="linear",
            dropout_rate=0.3,
        ),
        data=DataConfig(
            corpus="files:data/cmudict",
            columns=("word", "phones"),
            source="word",
            target="phones",
            vocabulary="characters",
            target_vocabulary="words",  # a phone has up to two letters
            joint_vocabulary=False,
            group_references=True,
            batch_size=128,
        ),
        optimizer=OptimizerConfig(learning_rate=2e-3, schedule="cosine", warmup_steps=200),
        train=TrainConfig(
            num_steps=9_000,  # ten epochs
            evaluate_every=1_000,
            label_smoothing=0.1,
            best_metric="exact_match",
        ),
        decode=DecodeConfig(beam_size=5, length_penalty=0.0),
        bleu_tokenizer="none",
        metrics=("token_errors",),
        published="31.14 % of words wrong (cmusphinx/g2p-seq2seq, LSTM of two layers of 512 units, without stress)",
        published_metric="sequence_error_rate",
        published_score=31.14,
    )
