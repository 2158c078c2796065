"""The synthetic lab, scaling laws and advice; imports no other room.

numpy, scipy and torch; pandas and matplotlib for tables and figures.
"""
