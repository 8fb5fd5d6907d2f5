"""Files, locks, processes and progress: nothing here knows of diffusion models."""
