"""What an encoder is worth with labels: fine-tuning, linear and attentive probes, few-shot; and checkpoints in."""
