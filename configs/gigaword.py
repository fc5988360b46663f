"""Gigaword, first sentences to headlines (Rush et al. 2015), LSTM with copying. Not run here.

    python train.py --config configs/gigaword.py

Published: ROUGE-1, -2 and -L (F1) 35.51, 17.35, 33.17 on test, for the copying LSTM of OpenNMT-py's summarisation page.
Settings are its defaults of then, 20 epochs. ROUGE needs `pip install '.[rouge]'`, whose program is another one than
pyrouge.

There the loss is a sum over a sentence and here a mean over tokens, of which a headline has 9: so the learning rate is
9 for its 1, and the largest norm of a gradient 0.55 for its 5. Other than there: the rate is halved every epoch from
the ninth on, and not sooner where validation is no better. Text as TFDS has it: lowercased, digits replaced by #, and
UNK for rare words in train and validation.
"""

from seq2seq_jax.config import Config, DataConfig, DecodeConfig, ModelConfig, OptimizerConfig, TrainConfig

_EPOCH = 59_437  # batches of 64, of 3,803,957 pairs


def get_config() -> Config:
    return Config(
        model=ModelConfig(
            num_layers=2,
            hidden_size=500,
            embed_size=500,
            bidirectional="none",
            attention="general",
            copy=True,
            dropout_rate=0.3,
            embedding_dropout_rate=0.0,
        ),
        data=DataConfig(corpus="gigaword", vocabulary="words", vocab_size=50_000, batch_size=64),
        optimizer=OptimizerConfig(
            name="sgd",
            learning_rate=9.0,
            clip_norm=0.55,
            schedule="halving",
            halving_start=8 * _EPOCH,
            halving_every=_EPOCH,
        ),
        train=TrainConfig(num_steps=20 * _EPOCH, evaluate_every=_EPOCH // 4, checkpoint_every=_EPOCH // 4),
        decode=DecodeConfig(beam_size=5, length_penalty=0.0),
        bleu_tokenizer="none",
        metrics=("rouge",),
        published="ROUGE F1 35.51, 17.35, 33.17 (OpenNMT-py's documentation, copying LSTM)",
    )
