"""Evaluate a model: features, kNN accuracy, reconstructions, and the cost that the curriculum saved."""
