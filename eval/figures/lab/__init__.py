"""Figures of the theory's laboratories."""
