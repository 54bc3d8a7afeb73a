"""Search of a curriculum: settings, methods, the choice from scores, the budget, the runs, what is shown."""
