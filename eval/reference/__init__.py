"""Reference tasks: how often a corpus has them, and how well a model does them."""
