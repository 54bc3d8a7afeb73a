"""Evaluate a pretrained encoder with labels: fine-tuning, linear and attentive probes, few-shot; import checkpoints."""
