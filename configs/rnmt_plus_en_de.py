"""RNMT+, WMT 2014, English to German, 32,000 pieces (Chen et al. 2018). Not run here.

    python train.py --config configs/rnmt_plus_en_de.py

Published: their table 2, 28.5 BLEU of tokens on newstest2014, mean over a window of evaluations; 379 million
parameters, 32 GPUs of 4,096 tokens each. Settings are those of WmtEnDeRNMT in tensorflow/lingvo. BLEU here is
sacreBLEU's, of text.

Other than there: the context does not go to the output layer too; the encoder's outputs are not projected; no weights
of attention are dropped; no L2 term of 1e-5; gradients of an unusual norm are clipped, and not left out; from the
largest rate on it is halved every 4,167 steps, where theirs falls as fast without steps.
"""

from seq2seq_jax.config import Config, DataConfig, DecodeConfig, ModelConfig, OptimizerConfig, TrainConfig


def get_config() -> Config:
    return Config(
        model=ModelConfig(
            cell="layer_norm_lstm",
            num_layers=6,
            decoder_layers=8,
            hidden_size=1_024,
            embed_size=1_024,
            bidirectional="all",
            direction_size=1_024,
            residual_from=3,
            decoder="gnmt",
            context_feedback=True,
            attention="additive",
            attention_heads=4,
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
            batch_size=None,
            batch_tokens=131_072,  # 32 times 4,096
        ),
        optimizer=OptimizerConfig(
            learning_rate=2.7e-3,  # where a rise to 32e-4 in 16,000 steps meets the fall from there at step 12,500
            warmup_steps=13_500,
            schedule="halving",
            halving_start=17_667,
            halving_every=4_167,
            beta2=0.999,
            clip_norm=5.0,
        ),
        train=TrainConfig(num_steps=40_000, evaluate_every=1_000, checkpoint_every=1_000, label_smoothing=0.1),
        decode=DecodeConfig(beam_size=8, length_penalty=0.6),
        published="28.5 BLEU of tokens on newstest2014 (Chen et al. 2018, table 2)",
    )
