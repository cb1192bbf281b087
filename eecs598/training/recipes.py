"""Recipes: training options that work well for a data set, for `python helpers.py train --recipe NAME`.

Each is a dict from options of `train` to values. docs/results.md has the scores and the time of each recipe.
"""

RECIPES = {
    "flickr8k": {
        "cell": ["attn"], "encoder": "lite2", "freeze_encoder": True, "captions": "together", "mirror": True,
        "epochs": 3, "batch_size": 32, "learning_rate": 1e-3, "lr_decay": 1, "wordvec": 512, "dropout": 0.3,
        "label_smoothing": 0.1, "clip_norm": 5.0, "warmup": 100, "cosine": True, "averaging": 0.99,
        "output_heads": 8, "score": True, "sharpen": 0.5, "self_critical": 6, "self_critical_rate": 3e-4,
        "self_critical_batch": 32, "self_critical_bleu": 2.0, "kept_samples": 3, "finetune_blocks": 1,
        "encoder_rate": 0.1, "precision": "float32", "reranker": True, "reranker_encoders": ["lite0", "lite1"],
    },
}  # fmt: skip
