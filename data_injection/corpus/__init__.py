"""A corpus: text becomes the engine's token files, and is read and scanned again."""
