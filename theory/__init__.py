"""The synthetic lab, scaling laws and advice: numpy, scipy, torch, pandas, matplotlib; no other room."""
