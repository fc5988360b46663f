"""draft"""

from seq2seq_jax.config import Config, DataConfig, DecodeConfig, ModelConfig, OptimizerConfig, TrainConfig


def get_config() -> Config:
    return Config(
        model=ModelConfig(
            hidden_size=128,
            embed_size=32,
            bidirectional="none",
            decoder="plain",
            attention="none",
            input_feeding=False,
            output="linear",
            dropout_rate=0.0,
            initializer="orthogonal",
            forget_bias=1.0,
        ),
        data=DataConfig(
            corpus="formal/parity",
            vocabulary="words",
            joint_vocabulary=False,
            max_length=81,  # what duplicate writes of 40 symbols, end mark included
            batch_size=128,
            num_shapes=4,
        ),
        optimizer=OptimizerConfig(learning_rate=1e-3, clip_norm=1.0),
        train=TrainConfig(num_steps=3_000, evaluate_every=250, checkpoint_every=1_000, best_metric="loss"),
        decode=DecodeConfig(beam_size=1, batch_size=128),
    )
