"""WMT 2014, English to German, 50,000 words (Luong et al. 2015, section 4). Not run here.

    python train.py --config configs/wmt14_en_de_luong2015.py

Published: their table 1, local-p attention with general scores and input feeding, 19.0 BLEU of tokens on newstest2014,
test_2014 here; 20.9 with unknown words replaced, which this package does not do. The data are the authors' own, from
nlp.stanford.edu/projects/nmt. Stochastic gradients at rate 1, halved every epoch after 8 of 12. There the loss is a sum
over a sentence and here a mean over tokens, of which a sentence has 25: so the learning rate is 25 for their 1, and the
largest norm of a gradient 0.2 for their 5.
"""

from seq2seq_jax.config import Config, DataConfig, DecodeConfig, ModelConfig, OptimizerConfig, TrainConfig

_EPOCH = 35_000  # batches of 128, of 4.5 million pairs


def get_config() -> Config:
    return Config(
        model=ModelConfig(
            num_layers=4,
            hidden_size=1_000,
            embed_size=1_000,
            bidirectional="none",
            reverse_source=True,
            attention="general",
            attention_window="local_p",
            window_size=10,
            dropout_rate=0.2,
        ),
        data=DataConfig(
            corpus="wmt14_en_de_stanford",
            vocabulary="words",
            vocab_size=50_000,
            joint_vocabulary=False,
            max_length=51,  # 50 and the end mark
            batch_size=128,
        ),
        optimizer=OptimizerConfig(
            name="sgd",
            learning_rate=25.0,
            clip_norm=0.2,
            schedule="halving",
            halving_start=8 * _EPOCH,
            halving_every=_EPOCH,
        ),
        train=TrainConfig(num_steps=12 * _EPOCH, evaluate_every=_EPOCH // 4, checkpoint_every=_EPOCH // 4),
        decode=DecodeConfig(beam_size=10, length_penalty=0.0),
        bleu_tokenizer="none",
        published_metric="bleu",
        published_score=19.0,
        published_split="test_2014",
        published="19.0 BLEU of tokens on newstest2014 (Luong et al. 2015, table 1); 20.9 with unknown words replaced",
    )
