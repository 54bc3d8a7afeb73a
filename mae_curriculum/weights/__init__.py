"""Weights from anywhere and to anywhere: `read` takes checkpoints of runs, timm, facebookresearch/mae and Hugging
Face, `build` makes models of them, `write` writes those layouts.
"""
