"""SIGMORPHON 2021 shared task 1, spelling to sound, 21 languages (Ashby et al. 2021). Not run here.

    python -m seq2seq_jax reproduce --config sigmorphon2021_g2p
    python -m seq2seq_jax reproduce --config sigmorphon2021_g2p --data.corpus sigmorphon2021_g2p/bul \
        --train.num-steps 8000 --published-metric None --published-score None

Low, 800 words to train on: ady gre ice ita khm lav mlt_latn rum slv wel_sw. Medium, 8,000: arm_e bul dut fre geo
hbs_latn hun jpn_hira kor vie_hanoi. High, 33,344: eng_us.

Published: the task scores WER, 100 minus the exact matches in percent. Its baseline, an ensemble of edit transducers,
has on test 41.94 (high), and in the mean 10.64 (medium) and 25.10 (low) (README of sigmorphon/2021-task1). An LSTM with
attention, of these sizes and epochs, has 78 of Icelandic's 100 test words exact (expected files of yoyodyne's tests,
one run at a batch of 100; its learning rate is 0.01 and constant).
"""

from seq2seq_jax.config import Config, DataConfig, DecodeConfig, ModelConfig, OptimizerConfig, TrainConfig


def get_config() -> Config:
    return Config(
        model=ModelConfig(
            hidden_size=256,
            direction_size=256,
            embed_size=64,
            decoder="bahdanau",
            attention="additive",
            input_feeding=False,
            bridge="mean",
            output="linear",
            dropout_rate=0.2,
        ),
        data=DataConfig(
            corpus="sigmorphon2021_g2p/ice",
            vocabulary="words",  # characters and sounds, with blanks between
            joint_vocabulary=False,
            batch_size=100,
            num_shapes=3,
        ),
        optimizer=OptimizerConfig(learning_rate=4.5e-3, schedule="cosine", warmup_steps=40),
        train=TrainConfig(
            num_steps=400,  # 50 epochs
            evaluate_every=40,
            checkpoint_every=40,
            label_smoothing=0.1,
            best_metric="exact_match",
        ),
        decode=DecodeConfig(beam_size=5, length_penalty=0.0, max_length_ratio=4.0),
        bleu_tokenizer="none",
        published_metric="exact_match",
        published_score=78.0,
        published="78 % of Icelandic test words exact (yoyodyne's tests, LSTM with attention, one run)",
    )
