"""Training: configuration, phases, checkpoints, and the main job."""
