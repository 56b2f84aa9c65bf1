"""Unsupervised domain adaptation: the dual-adaptive pyramid network; one idea per file."""
