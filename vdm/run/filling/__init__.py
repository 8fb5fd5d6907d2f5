"""Filling in: what is known of examples, and samples of the rest."""
