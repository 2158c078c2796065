"""The plugin on stock ai2-olmo: the only room that trains."""
