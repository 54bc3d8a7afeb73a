"""Pretraining of masked autoencoders under a curriculum of image size and augmentation strength."""
