"""GEO, ATIS and JOBS: questions to logical forms (data of Dong and Lapata 2016). Not run here.

    python -m seq2seq_jax reproduce --config lang2logic
    python -m seq2seq_jax reproduce --config lang2logic --data.corpus lang2logic/atis --train.num-steps 41700 \
        --train.evaluate-every 278 --published-score 79.9
    python -m seq2seq_jax reproduce --config lang2logic --data.corpus lang2logic/jobs --train.num-steps 3750 \
        --train.evaluate-every 25 --published-score 71.4

Published: README of jbkjr/allennlp_sempar, whose data and settings these are, bidirectional LSTM with bilinear
attention, one run each: 68.9 % (GEO), 79.9 (ATIS) and 71.4 (JOBS) of test forms exact. Dong and Lapata's own model, by
RMSProp, has 84.6, 84.2 and 87.1; they train on the validation pairs of GEO and JOBS too, and count forms as right
whose parts are in another order.

Other than there: the decoder starts from the encoder's memory too, and not from zeros.
"""

from seq2seq_jax.config import Config, DataConfig, DecodeConfig, ModelConfig, OptimizerConfig, TrainConfig


def get_config() -> Config:
    return Config(
        model=ModelConfig(
            hidden_size=400,
            embed_size=100,
            decoder="bahdanau",
            attention="general",
            input_feeding=False,
            output="linear",
            dropout_rate=0.0,
        ),
        data=DataConfig(
            corpus="lang2logic/geo",
            vocabulary="words",
            joint_vocabulary=False,
            max_length=200,
            batch_size=16,
            num_shapes=4,
        ),
        optimizer=OptimizerConfig(learning_rate=2.5e-3, schedule="inverse_sqrt", warmup_steps=800, clip_norm=0.0),
        train=TrainConfig(
            num_steps=4_500,  # 150 epochs
            evaluate_every=30,
            checkpoint_every=300,
            best_metric="exact_match",
            early_stopping=30,
        ),
        decode=DecodeConfig(beam_size=5, length_penalty=0.0, max_length_ratio=10.0),
        bleu_tokenizer="none",
        published_metric="exact_match",
        published_score=68.9,
        published="68.9 % of GEO's test forms exact (jbkjr/allennlp_sempar, one run)",
    )
