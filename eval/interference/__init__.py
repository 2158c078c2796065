"""Interference: what the rest of a batch does to a rare task's gradient."""
