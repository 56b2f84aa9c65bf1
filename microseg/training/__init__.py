"""Training of segmenters: loop, losses, checkpoints, supervised training and adaptation."""
