"""What a run records: the journal of all events, the stopwatch, the progress bar, hardware metrics, and the upload to
Weights & Biases. Reports on finished journals are in `report`.
"""
