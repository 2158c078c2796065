"""Features: which of a task's structure can be read off a model's states."""
