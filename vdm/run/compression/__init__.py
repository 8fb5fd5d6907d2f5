"""Compressed files: their format, what goes in and comes out, and what they cost."""
