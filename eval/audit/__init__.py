"""The audit: are plan, checkpoints, ledger and text of a run of one piece?"""
