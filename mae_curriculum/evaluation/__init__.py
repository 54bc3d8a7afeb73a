"""What an encoder is worth: features, kNN accuracy, reconstructions, and what the curriculum saved."""
