"""Export: a checkpoint as a folder that stock transformers loads, and back."""
