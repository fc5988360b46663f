"""SIGMORPHON 2020 task 1, spelling to sound: the characters of a word to IPA phones, 3,600 words a language.

    python train.py --config configs/sigmorphon2020_g2p.py --data.corpus files:DIR

with `train.tsv[.gz]`, `validation.tsv`, `test.tsv` of a language in DIR: a word, a tab, phones with blanks between.
`sequence_error_rate` is the task's WER, the share of words that are wrong, and `token_error_rate` its PER, wrong phones
by phones.

Published on test, WER / PER: Gorman et al. 2020, Table 2, the task's own encoder-decoder (a bidirectional LSTM and an
LSTM with attention, with sizes and dropout chosen for each language on validation): bul 31.11 / 5.94, fre 6.22 / 1.32,
geo 26.44 / 5.14, hun 5.33 / 1.18, jpn 7.56 / 1.79, kor 46.89 / 16.78; the mean of all 15 languages 16.84 / 3.99.
Here, WER, two seeds each (hun eight): bul 26.7, fre 6.8, geo 25.8, hun 6.0, jpn 6.1, kor 34.4 (docs/reproductions.md);
3 to 9 minutes on 2 CPU cores for two seeds.

For a verdict on one language name its score, here French:

    python -m seq2seq_jax reproduce --config configs/sigmorphon2020_g2p.py --data.corpus files:DIR \
        --published-metric sequence_error_rate --published-score 6.22 --num-seeds 2
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
            corpus="files:data/sigmorphon2020-g2p/fre",
            columns=("word", "phones"),
            source="word",
            target="phones",
            vocabulary="characters",
            target_vocabulary="words",  # a phone is a letter with its marks, or several under a tie
            joint_vocabulary=False,
            batch_size=64,
            num_shapes=3,
        ),
        optimizer=OptimizerConfig(learning_rate=4e-3, schedule="cosine", warmup_steps=100),
        train=TrainConfig(
            num_steps=1_700,  # thirty epochs
            evaluate_every=100,
            checkpoint_every=500,
            label_smoothing=0.1,
            best_metric="exact_match",
        ),
        decode=DecodeConfig(beam_size=5, length_penalty=0.0),
        bleu_tokenizer="none",
        metrics=("token_errors",),
        published=(
            "WER / PER (Gorman et al. 2020): bul 31.11 / 5.94, fre 6.22 / 1.32, geo 26.44 / 5.14, hun 5.33 / 1.18, jpn"
            " 7.56 / 1.79, kor 46.89 / 16.78"
        ),
    )
