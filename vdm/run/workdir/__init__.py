"""What a workdir holds: checkpoints, metrics, and the record of sessions."""
