"""The synthetic lab and the scaling laws: numpy, scipy and torch; imports no other room."""
