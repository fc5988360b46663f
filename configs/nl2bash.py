"""NL2Bash (Lin et al. 2018): an English description to a bash command, with words copied from the description.

    python -m seq2seq_jax reproduce --config configs/nl2bash.py --data.corpus files:DIR

with `train.nl[.gz]`, `train.bash`, `validation.*`, `test.*` in DIR. File names, numbers and patterns that the
vocabulary lacks can be copied (See et al. 2017). The paper's split needs its own parser of bash and is not at hand, so
that its numbers are for orientation only: a sub-token CopyNet has a character BLEU of 50.9 with its best command.
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
            corpus="files:data/nl2bash",
            source="nl",
            target="bash",
            vocabulary="words",
            joint_vocabulary=True,
            min_frequency=2,
            batch_size=64,
            max_length=60,
            num_shapes=5,
        ),
        optimizer=OptimizerConfig(learning_rate=2e-3, schedule="cosine", warmup_steps=100),
        train=TrainConfig(
            num_steps=2_500, evaluate_every=500, checkpoint_every=500, label_smoothing=0.1, best_metric="bleu"
        ),
        decode=DecodeConfig(beam_size=5, length_penalty=1.0, max_length_ratio=3.0),
        bleu_tokenizer="char",
        published="50.9 character BLEU (Lin et al. 2018, sub-token CopyNet, on their own split; for orientation only)",
    )
