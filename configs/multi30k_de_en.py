"""Multi30k (Elliott et al. 2016), German to English, raw cased text.

    python train.py --config configs/multi30k_de_en.py --data.corpus files:DIR

with the corpus's `train.de[.gz]`, `train.en[.gz]`, `validation.*`, `test_*.*` in DIR.
60 minutes on 2 CPU cores: test_2016_flickr, beam 5, sacreBLEU 41.4 cased, 41.6 lowercased (one seed). With
`--train.num-steps 4900 --model.dropout-rate 0.3 --optimizer.learning-rate 1.5e-3` 40.6 and 40.8 in 15 minutes.
Curves and machines are in docs/reproductions.md.
"""

from seq2seq_jax.config import Config, DataConfig, DecodeConfig, ModelConfig, OptimizerConfig, TrainConfig


def get_config() -> Config:
    return Config(
        model=ModelConfig(
            hidden_size=512, embed_size=256, dropout_rate=0.4, tied_embeddings="target_output", attention="general"
        ),
        data=DataConfig(
            corpus="files:data/multi30k-de-en",
            source="de",
            target="en",
            vocabulary="bpe",
            vocab_size=5000,
            joint_vocabulary=False,
            batch_size=64,
            num_shapes=12,
        ),
        optimizer=OptimizerConfig(learning_rate=1e-3, schedule="cosine", warmup_steps=200),
        train=TrainConfig(
            num_steps=9_000,
            evaluate_every=750,
            checkpoint_every=750,
            label_smoothing=0.1,
            best_metric="bleu",
        ),
        decode=DecodeConfig(beam_size=5, length_penalty=1.0),
    )
