"""Advice: from records to the surfaces that it is read off."""
