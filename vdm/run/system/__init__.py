"""Files, locks, processes and progress: nothing here depends on diffusion models."""
