"""What a run records: the journal (every event, on disk), the stopwatch, the progress bar, hardware figures, and the
copy of the journal at Weights & Biases (`wandb`). What is made of a finished journal is in `report`.
"""
