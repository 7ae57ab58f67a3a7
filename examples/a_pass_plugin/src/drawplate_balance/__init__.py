"""Moves scale across gated layers by powers of two: the same function to the last bit, easier to quantise."""
