"""Is what this project promises true on this machine? `olmo-ext verify` asks, a few steps each."""
