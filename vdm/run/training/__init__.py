"""A training run: its parts, its step, and its checks."""
