"""Scaling laws: their closed forms, their fit and the frontier."""
