"""Scoring: the bits of any examples under a trained run, and where they stand among its data."""
