"""Gradients of other losses beside a training step's own."""
