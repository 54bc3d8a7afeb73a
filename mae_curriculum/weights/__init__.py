"""Checkpoints: `read` those of runs, timm, facebookresearch/mae and Hugging Face, `build` models, `write` files."""
