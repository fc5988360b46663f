"""GNMT, WMT 2014, English to German, 32,000 pieces (Wu et al. 2016). Not run here.

    python train.py --config configs/gnmt_en_de.py

Published: their table 5, one model with word pieces after training by likelihood, 24.61 BLEU of tokens on newstest2014.
BLEU here is sacreBLEU's, of text: no more than near it. 278 million parameters by Chen et al. 2018.

Other than there: Adam all along at the rate of its first 60,000 steps, where they go on with stochastic gradients at
0.5, halved from step 1,200,000 on; no penalty of coverage in the search; 32,000 pieces of SentencePiece.
"""

from seq2seq_jax.config import Config, DataConfig, DecodeConfig, ModelConfig, OptimizerConfig, TrainConfig


def get_config() -> Config:
    return Config(
        model=ModelConfig(
            num_layers=8,
            hidden_size=1_024,
            embed_size=1_024,
            bidirectional="first",
            direction_size=1_024,
            residual_from=3,
            decoder="gnmt",
            context_feedback=True,
            attention="additive",
            input_feeding=False,
            bridge="zero",
            output="linear",
            dropout_rate=0.3,
            output_dropout_rate=0.0,
            init_scale=0.04,
        ),
        data=DataConfig(
            corpus="wmt14_translate/de-en",
            source="en",
            target="de",
            vocabulary="unigram",
            vocab_size=32_000,
            batch_size=128,
        ),
        optimizer=OptimizerConfig(learning_rate=2e-4, clip_norm=5.0),
        train=TrainConfig(num_steps=1_200_000, evaluate_every=10_000, checkpoint_every=10_000),
        decode=DecodeConfig(beam_size=8, length_penalty=0.2),
        published="24.61 BLEU of tokens on newstest2014, one model (Wu et al. 2016, table 5)",
    )
