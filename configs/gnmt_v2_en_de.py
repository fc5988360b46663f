"""GNMT v2, WMT 2016, English to German, 32,000 pieces (NVIDIA's examples; MLPerf). Not run here.

    python train.py --config configs/gnmt_v2_en_de.py
    sacrebleu -t wmt14/full -l en-de --echo src > newstest2014.en
    sacrebleu -t wmt14/full -l en-de --echo ref > newstest2014.de
    python -m seq2seq_jax evaluate --workdir runs/gnmt_v2_en_de --source-file newstest2014.en \
        --target-file newstest2014.de

Published: README of PyTorch/Translation/GNMT in NVIDIA/DeepLearningExamples, 24.42 sacreBLEU on newstest2014, standard
deviation 0.13, after the last of six epochs; 32 seeds on an A100. MLPerf 0.7 stops at 24.0, lowercased. The test split
of this corpus is newstest2016, and validation newstest2015; newstest2014 is evaluated by the last commands.

Settings are its defaults at 1,024 sentences a step: warm-up of 200 steps, linear here, and four halvings in the last
third. The number of steps is six epochs of the 3.5 million pairs of up to 50 pieces; `plan` says how many batches an
epoch has with the vocabulary made here.

Other than there: the penalty of coverage, 0.1, is not in the search; pairs beyond Latin-1 are kept; pieces are
SentencePiece's of raw text, and not of Moses' tokens; all is float32, where theirs is mixed
(`--model.compute-dtype bfloat16`).
"""

from seq2seq_jax.config import Config, DataConfig, DecodeConfig, ModelConfig, OptimizerConfig, TrainConfig


def get_config() -> Config:
    return Config(
        model=ModelConfig(
            num_layers=4,
            hidden_size=1_024,
            embed_size=1_024,
            bidirectional="first",
            direction_size=1_024,
            residual_from=3,
            decoder="gnmt",
            attention="normed_additive",
            input_feeding=False,
            bridge="zero",
            output="linear",
            tied_embeddings="source_target",
            dropout_rate=0.2,
            output_dropout_rate=0.0,
            init_scale=0.1,
        ),
        data=DataConfig(
            corpus="wmt16_translate/de-en",
            source="en",
            target="de",
            vocabulary="bpe",
            vocab_size=32_000,
            max_length=50,
            batch_size=1_024,
        ),
        optimizer=OptimizerConfig(
            learning_rate=2e-3,
            warmup_steps=200,
            schedule="halving",
            halving_start=15_500,
            halving_every=1_700,
            clip_norm=5.0,
        ),
        train=TrainConfig(num_steps=20_500, evaluate_every=1_700, checkpoint_every=1_700, label_smoothing=0.1),
        decode=DecodeConfig(beam_size=5, length_penalty=0.6),
        published="24.42 sacreBLEU on newstest2014, standard deviation 0.13 of 32 seeds (NVIDIA, GNMT v2 for PyTorch)",
    )
