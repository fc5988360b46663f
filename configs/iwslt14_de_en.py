"""IWSLT 2014, German to English, words (data of Ranzato et al. 2016; model of JoeyNMT). Not run here.

    pip install '.[moses]' && python train.py --config configs/iwslt14_de_en.py

Published: docs/benchmarks_v1.md of joeynmt/joeynmt, one model of 22.05 million parameters. BLEU of lowercased tokens
on test: 26.68 greedy, 27.03 with a beam of 10. On the same data Wiseman and Rush 2016 have 23.87 and Bahdanau et al.
2017, by likelihood, 27.56. Settings are those of its iwslt_deen_bahdanau.yaml.

`--data.corpus iwslt14_de_en/fairseq` is the text of fairseq's examples: 160,239 pairs of up to 175 tokens, usually cut
into 10,000 pieces: `--data.vocabulary bpe --data.min-frequency 1 --data.vocab-size 10000 --data.max-length 175`.

Other than there: the encoder's last states are both directions' through a tanh layer, and not the forward one's;
sacremoses is the tokeniser, and not Moses' Perl.
"""

from seq2seq_jax.config import Config, DataConfig, DecodeConfig, ModelConfig, OptimizerConfig, TrainConfig


def get_config() -> Config:
    return Config(
        model=ModelConfig(
            hidden_size=256,
            direction_size=256,
            embed_size=256,
            attention="general",
            bridge="dense",
            dropout_rate=0.2,
        ),
        data=DataConfig(
            corpus="iwslt14_de_en/mixer",
            vocabulary="words",
            min_frequency=3,
            vocab_size=50_000,
            joint_vocabulary=False,
            max_length=51,  # 50 and the end mark
            batch_size=64,
        ),
        optimizer=OptimizerConfig(schedule="plateau", plateau_factor=0.5, plateau_patience=1, clip_norm=0.0),
        train=TrainConfig(num_steps=70_000, evaluate_every=2_359, checkpoint_every=2_359, early_stopping=6),
        decode=DecodeConfig(beam_size=10, length_penalty=1.0),
        bleu_tokenizer="none",
        published_metric="bleu",
        published_score=27.03,
        published="27.03 BLEU of lowercased tokens, beam 10 (JoeyNMT, one model)",
    )
