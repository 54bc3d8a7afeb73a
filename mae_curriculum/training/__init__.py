"""Training, whatever is trained: one optimizer step, the loop, the run's session, metrics, anomaly detection, the
optimizer and its learning rate. It knows no model and no evaluation: `pretraining` and `finetune` bring theirs.
"""
