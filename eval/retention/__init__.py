"""Retention: how much of what a burst taught is left after a gap."""
