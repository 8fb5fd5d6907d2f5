"""Compressed files: their format, their contents, and their size in parts."""
