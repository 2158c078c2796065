"""Checkpoints: find them, load their model and the plan they were trained with."""
