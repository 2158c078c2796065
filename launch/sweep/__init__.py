"""Sweeps: many runs on this machine, side by side, screened and resumable."""
