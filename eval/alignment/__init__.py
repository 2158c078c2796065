"""Alignment: which places of a model hold which variable of a task, causally."""
