"""The copy of a run's journal at Weights & Biases: `launch` starts a process beside the run, `upload` is that process,
`rows` says what it sends.
"""
