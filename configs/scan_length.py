"""SCAN, length split (Lake and Baroni 2018, experiment 2): trained on up to 22 actions, tested on 24 to 48.

    python -m seq2seq_jax reproduce --config configs/scan_length.py

The model is their best one for this split: a GRU of one layer of 50 units with attention, dropout 0.5.
"""

from seq2seq_jax.config import Config, DataConfig, DecodeConfig, ModelConfig, OptimizerConfig, TrainConfig


def get_config() -> Config:
    return Config(
        model=ModelConfig(
            cell="gru",
            hidden_size=50,
            embed_size=50,
            num_layers=1,
            bidirectional="none",
            decoder="bahdanau",
            attention="additive",
            input_feeding=False,
            output="linear",
            dropout_rate=0.5,
        ),
        data=DataConfig(corpus="scan/length", vocabulary="words", joint_vocabulary=False, batch_size=32, num_shapes=3),
        optimizer=OptimizerConfig(learning_rate=3e-3, schedule="cosine", warmup_steps=100),
        train=TrainConfig(num_steps=6_000, evaluate_every=2_000, checkpoint_every=2_000, best_metric="exact_match"),
        decode=DecodeConfig(beam_size=1, max_length_ratio=8.0),
        published_metric="exact_match",
        published_score=20.8,
        published="20.8 % of sequences exact (Lake and Baroni 2018, best of their models; mean of five runs)",
    )
