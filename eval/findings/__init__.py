"""The chapters of docs/findings.md: their tables and figures, from committed records."""
