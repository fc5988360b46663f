"""Multi30k (Elliott et al. 2016), English to German, raw cased text.

    pip install '.[moses]' && python train.py --config configs/multi30k_en_de.py --data.corpus files:DIR

with the corpus's `train.de[.gz]`, `train.en[.gz]`, `validation.*`, `test_*.*` in DIR. 23 minutes on 2 CPU cores:
test_2016_flickr, beam 5, 39.4 BLEU tokenised and lowercased (published: 39.00), 39.0 cased (sacreBLEU), one seed. The
curve and what else was tried are in docs/reproductions.md.
"""

from seq2seq_jax.config import Config, DataConfig, DecodeConfig, ModelConfig, OptimizerConfig, TrainConfig


def get_config() -> Config:
    return Config(
        model=ModelConfig(
            hidden_size=512, embed_size=256, dropout_rate=0.35, tied_embeddings="target_output", attention="general"
        ),
        data=DataConfig(
            corpus="files:data/multi30k-de-en",
            source="en",
            target="de",
            vocabulary="bpe",
            vocab_size=5000,
            joint_vocabulary=False,
            batch_size=64,
            num_shapes=12,
        ),
        optimizer=OptimizerConfig(learning_rate=3e-3, schedule="cosine", warmup_steps=200),
        train=TrainConfig(
            num_steps=6_500,
            evaluate_every=1_300,
            checkpoint_every=1_300,
            label_smoothing=0.1,
            best_metric="bleu",
        ),
        decode=DecodeConfig(beam_size=5, length_penalty=1.0),
        moses_language="de",
        published_metric="bleu_moses_lowercase",
        published_score=39.0,
        published_split="test_2016_flickr",
        published=(
            "39.00 BLEU on test_2016_flickr, tokenised and lowercased (text-only baseline of lium-lst/wmt17-mmt):"
            " compare bleu_moses_lowercase"
        ),
    )
