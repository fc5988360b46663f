"""AESLC (Zhang and Tetreault 2019): an e-mail to its subject line, by a pointer-generator (See et al. 2017).

    python -m seq2seq_jax reproduce --config configs/aeslc.py --data.corpus files:DIR

with `train.email`, `train.subject`, `test.email`, `test.subject` in DIR; a validation split is cut from train. An
e-mail is read up to its 120th word, which is for whoever makes the files to do:

    cut -d' ' -f1-120 whole.email > DIR/train.email

Published, on the test set: ROUGE-1, -2, -L (F1) 23.67, 10.29, 23.44, an extractor of sentences and a writer trained
together by reinforcement. ROUGE needs `pip install '.[rouge]'`.
"""

from seq2seq_jax.config import Config, DataConfig, DecodeConfig, ModelConfig, OptimizerConfig, TrainConfig


def get_config() -> Config:
    return Config(
        model=ModelConfig(
            hidden_size=256,
            embed_size=128,
            decoder="bahdanau",
            attention="additive",
            input_feeding=False,
            bridge="mean",
            output="linear",
            copy=True,
            tied_embeddings="source_target",
            dropout_rate=0.4,
        ),
        data=DataConfig(
            corpus="files:data/aeslc",
            source="email",
            target="subject",
            lowercase=True,
            vocabulary="bpe",
            vocab_size=8_000,
            max_length=220,
            batch_size=64,
            num_shapes=8,
        ),
        optimizer=OptimizerConfig(learning_rate=2e-3, schedule="cosine", warmup_steps=100),
        train=TrainConfig(
            num_steps=2_400, evaluate_every=400, checkpoint_every=400, label_smoothing=0.1, best_metric="chrf"
        ),
        decode=DecodeConfig(beam_size=5, length_penalty=1.0),
        metrics=("rouge",),
        published="ROUGE F1 23.67, 10.29, 23.44 (Zhang and Tetreault 2019, extraction, writing, reinforcement)",
        published_metric="rougeL",
        published_score=23.44,
        published_band=2.0,
    )
