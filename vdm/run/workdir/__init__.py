"""What lies in a workdir: checkpoints, metrics, and the record of sessions."""
