"""Reference tasks: comparisons and additions that a corpus makes by itself."""
