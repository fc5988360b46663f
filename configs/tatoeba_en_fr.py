"""Tatoeba, English to French: 160,000 short sentences; where an English one has several translations, any may be met.

    python -m seq2seq_jax reproduce --config configs/tatoeba_en_fr.py --data.corpus files:DIR --num-seeds 2

with `train.en[.gz]`, `train.fr`, `validation.*`, `test.*` in DIR: the pairs of ManyThings and Tatoeba, raw. Validation
and test have a line for each translation, and no sentence that train has on either side: tutorials split these pairs at
random and test on English sentences that they trained on, so that there is no published score to compare with.
"""

from seq2seq_jax.config import Config, DataConfig, DecodeConfig, ModelConfig, OptimizerConfig, TrainConfig


def get_config() -> Config:
    return Config(
        model=ModelConfig(
            hidden_size=384, embed_size=384, dropout_rate=0.3, tied_embeddings="all", attention="general"
        ),
        data=DataConfig(
            corpus="files:data/tatoeba-en-fr",
            source="en",
            target="fr",
            group_references=True,
            vocabulary="bpe",
            vocab_size=8_000,
            max_length=60,
            batch_size=128,
        ),
        optimizer=OptimizerConfig(learning_rate=2e-3, schedule="cosine", warmup_steps=200),
        train=TrainConfig(
            num_steps=8_000, evaluate_every=1_000, checkpoint_every=1_000, label_smoothing=0.1, best_metric="bleu"
        ),
        decode=DecodeConfig(beam_size=5, length_penalty=1.0),
        published="none comparable",
    )
