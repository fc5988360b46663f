"""IWSLT 2015, English to Vietnamese (Luong and Manning 2015; tensorflow/nmt). Not run here.

    python -m seq2seq_jax reproduce --config iwslt15_en_vi --num-seeds 2

Published: README of tensorflow/nmt, mean of two models. BLEU of the tokens as they stand, tst2012 (validation) and
tst2013 (test): 23.2 and 25.5 greedy, 23.8 and 26.1 with a beam of 10. Settings are those of its iwslt15.json. There the
loss is a sum over a sentence and here a mean over tokens, of which a sentence has 25: so the learning rate is 25 for
its 1, and the largest norm of a gradient 0.2 for its 5.

Other than there: the decoder's first states are made of the mean of the encoder's outputs, and not the last states of
the two directions, one a layer; the attentional vector goes through a tanh; longer pairs than 50 tokens are left out
and not cut; words seen five times are the vocabulary, by which its lists of 17,191 and 7,709 were made.
"""

from seq2seq_jax.config import Config, DataConfig, DecodeConfig, ModelConfig, OptimizerConfig, TrainConfig


def get_config() -> Config:
    return Config(
        model=ModelConfig(
            num_layers=1,
            decoder_layers=2,
            hidden_size=512,
            direction_size=512,
            embed_size=512,
            attention="general",
            bridge="mean",
            dropout_rate=0.2,
            output_dropout_rate=0.0,
            forget_bias=1.0,
        ),
        data=DataConfig(
            corpus="iwslt15_en_vi",
            vocabulary="words",
            min_frequency=5,
            vocab_size=20_000,
            joint_vocabulary=False,
            max_length=51,  # 50 and the end mark
            batch_size=128,
        ),
        optimizer=OptimizerConfig(
            name="sgd",
            learning_rate=25.0,
            clip_norm=0.2,
            schedule="halving",
            halving_start=9_000,
            halving_every=1_000,
        ),
        train=TrainConfig(num_steps=12_000, evaluate_every=1_000, checkpoint_every=1_000),
        decode=DecodeConfig(beam_size=10, length_penalty=0.0),
        bleu_tokenizer="none",
        published_metric="bleu",
        published_score=26.1,
        published="26.1 BLEU of tokens on tst2013, beam 10 (tensorflow/nmt, mean of two models)",
    )
