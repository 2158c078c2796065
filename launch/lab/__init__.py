"""`olmo-ext theory`: the synthetic lab's experiments, run and shown."""
