"""A run on disk: its folder, checkpoints and lock, and requests to stop it. The journal is in `tracking`."""
