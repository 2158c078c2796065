"""What callbacks ask of a run, and how each engine answers."""
