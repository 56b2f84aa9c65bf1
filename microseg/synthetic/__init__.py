"""Synthetic labs with known ground truth, for tests and the demo."""
