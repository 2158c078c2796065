"""The task families, and how a run's tasks get their tokens."""
