"""DailyDialog (Li et al. 2017): a reply to an utterance, read with the two before it.

    python train.py --config configs/dailydialog.py --data.corpus files:DIR

with `train.source[.gz]`, `train.target`, `train.turn`, `validation.*` in DIR: an utterance, the one after it, and
beside them the number of the dialogue, a tab, and the position of the first in it, counted from 0. Then

    python -m seq2seq_jax translate --workdir runs/dailydialog

is a chat. `--data.context-turns 0` reads the utterance alone, with the same vocabulary.
"""

from seq2seq_jax.config import Config, DataConfig, DecodeConfig, ModelConfig, OptimizerConfig, TrainConfig


def get_config() -> Config:
    return Config(
        model=ModelConfig(
            hidden_size=512, embed_size=256, dropout_rate=0.3, tied_embeddings="all", attention="general"
        ),
        data=DataConfig(
            corpus="files:data/dailydialog",
            source="source",
            target="target",
            turns="turn",
            context_turns=2,
            vocabulary="bpe",
            vocab_size=8_000,
            max_length=100,
            batch_size=64,
            num_shapes=8,
        ),
        optimizer=OptimizerConfig(learning_rate=1e-3, schedule="cosine", warmup_steps=200),
        train=TrainConfig(num_steps=6_000, evaluate_every=1_000, checkpoint_every=1_000),
        decode=DecodeConfig(beam_size=5, length_penalty=1.0, max_length_ratio=8.0),  # after "Yes ." come long stories
    )
