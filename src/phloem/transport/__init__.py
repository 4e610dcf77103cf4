"""Moves whole frames, in order, with back-pressure."""
