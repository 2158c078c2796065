"""The report: one page from the records of a run or sweep."""
