"""Scores: how much of a rare task a model knows, and the size x frequency table."""
