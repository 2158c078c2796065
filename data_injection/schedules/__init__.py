"""Schedules: how many instances of a task enter the stream at each step."""
