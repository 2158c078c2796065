"""Settings that change how a step is computed and nothing of what it means."""
