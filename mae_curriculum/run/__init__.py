"""What lies on disk of a run and who may write there: the folder, checkpoints, the lock, requests to stop. The journal
is in `tracking`.
"""
