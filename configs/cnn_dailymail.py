"""CNN/Daily Mail, articles to summaries (See et al. 2017), pointer-generator with coverage. Not run here.

    python train.py --config configs/cnn_dailymail.py

Published: their table 1, ROUGE-1, -2 and -L (F1) 39.53, 17.28, 36.38; 36.44, 15.66, 33.42 without coverage, and 31.33,
11.81, 28.83 without the pointer too. 21,499,600 parameters before either. ROUGE needs `pip install '.[rouge]'`, whose
program is another one than their pyrouge.

The corpus is tokenised text, articles cut to 400 tokens as theirs are. `cnn_dailymail`, TFDS's, is raw and whole.

Other than there: Adam, where theirs is Adagrad at 0.15 with accumulators from 0.1; coverage from the start, and not for
the last 3,000 of 230,000 steps; articles do not begin shorter; the attentional vector is fed back and goes through a
tanh; outputs are not kept to 35 tokens or more.
"""

from seq2seq_jax.config import Config, DataConfig, DecodeConfig, ModelConfig, OptimizerConfig, TrainConfig


def get_config() -> Config:
    return Config(
        model=ModelConfig(
            hidden_size=256,
            direction_size=256,
            embed_size=128,
            attention="additive",
            coverage=True,
            copy=True,
            bridge="dense",
            tied_embeddings="source_target",
            dropout_rate=0.0,
            init_scale=0.02,
        ),
        data=DataConfig(
            corpus="cnn_dailymail_tokenized",
            vocabulary="words",
            vocab_size=50_000,
            max_length=401,  # 400 and the end mark
            batch_size=16,
        ),
        optimizer=OptimizerConfig(learning_rate=1e-3, clip_norm=2.0),
        train=TrainConfig(num_steps=230_000, evaluate_every=5_000, checkpoint_every=5_000, coverage_loss=1.0),
        decode=DecodeConfig(beam_size=4, length_penalty=1.0, max_length_ratio=0.3),
        bleu_tokenizer="none",
        metrics=("rouge",),
        published="ROUGE F1 39.53, 17.28, 36.38 (See et al. 2017, table 1, pointer-generator with coverage)",
    )
