"""Training, whatever is trained: one optimizer step, the loop, the run's session, metrics, anomaly detection, the
optimizer and its learning rate. Models and evaluations come from `pretraining` and `finetune`.
"""
