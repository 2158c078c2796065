"""The callbacks a run can have: what may look at it while it trains."""
