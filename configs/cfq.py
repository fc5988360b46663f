"""CFQ (Keysers et al. 2020): questions to SPARQL, split so that compounds diverge. Not run here.

    python -m seq2seq_jax reproduce --config cfq
    python -m seq2seq_jax reproduce --config cfq --data.corpus cfq/mcd2 --published-score 5.0 --published-band 0.8
    python -m seq2seq_jax reproduce --config cfq --data.corpus cfq/mcd3 --published-score 10.8 --published-band 0.6
    python -m seq2seq_jax reproduce --config cfq --data.corpus cfq/random_split --published-score 97.4 \
        --published-band 0.3

Published: LSTM with attention, means of five runs and 95 % intervals, google-research/cfq. Settings are those of its
cfq_lstm_attention_multi in Tensor2Tensor: learning rate 0.03 times 0.002, the factor it has for Adam.

Other than there: first values are uniform in ±0.1, and not scaled to each matrix; the attentional vector goes through a
tanh. Both cut at blanks, so that a right query is the same one; `count(*)` is a token here and four there.
"""

from seq2seq_jax.config import Config, DataConfig, DecodeConfig, ModelConfig, OptimizerConfig, TrainConfig


def get_config() -> Config:
    return Config(
        model=ModelConfig(
            num_layers=2,
            hidden_size=512,
            embed_size=512,
            bidirectional="none",
            reverse_source=True,
            attention="additive",
            attention_heads=4,
            dropout_rate=0.4,
            output_dropout_rate=0.0,
            tied_embeddings="source_target",
            forget_bias=1.0,
        ),
        data=DataConfig(corpus="cfq/mcd1", vocabulary="words", max_length=256, batch_size=None, batch_tokens=2_048),
        optimizer=OptimizerConfig(learning_rate=6e-5, warmup_steps=100, beta1=0.85, beta2=0.997, clip_norm=2.0),
        train=TrainConfig(num_steps=35_000, evaluate_every=2_500, checkpoint_every=2_500, label_smoothing=0.1),
        decode=DecodeConfig(beam_size=4, length_penalty=0.6, max_length_ratio=10.0),
        published_metric="exact_match",
        published_score=28.9,
        published_band=1.8,
        published="28.9 ± 1.8 % of test queries exact on MCD1 (Keysers et al. 2020, LSTM with attention, five runs)",
    )
