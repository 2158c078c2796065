"""Examples of a task family and a callback that live outside olmo-ext."""
