"""The synthetic lab: students of mixtures of regression tasks, and its experiments."""
