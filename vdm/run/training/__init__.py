"""A training run: its parts, its step, and what watches over it."""
