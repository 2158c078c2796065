"""The front door: the `olmo-ext` command."""
