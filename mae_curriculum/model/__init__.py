"""The masked autoencoder: encoder, masking, decoder, targets, positional embeddings, and what they cost in FLOPs.
Reading and writing checkpoints of any origin is in `weights`.
"""
