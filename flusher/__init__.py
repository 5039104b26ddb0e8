"""Owns what must not be lost: journal first, acknowledge, write to MySQL in batches."""
