"""A film strip: how samples come to be, from noise to data."""
