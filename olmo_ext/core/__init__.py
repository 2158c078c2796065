"""OLMo-core 3 as a second engine (docs/olmo_core.md); needs the extra `core`."""
