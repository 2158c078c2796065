"""The study's figures, drawn from records."""
