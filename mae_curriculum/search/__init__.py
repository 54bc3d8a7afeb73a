"""Search of a curriculum by pretraining: settings, methods, the choice from scores, the runs, what is shown."""
