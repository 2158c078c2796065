"""`olmo-ext scaling`: laws fitted to runs, and what they advise."""
