"""Advice: thresholds, orders and mixtures that theory and a sweep speak for."""
