"""What stands before a run is paid for: its plan, its cost, its warnings."""
