"""The synthetic lab, scaling laws, advice: numpy, scipy, torch, pandas, matplotlib; no other room."""
