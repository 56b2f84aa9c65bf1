"""Evaluation: overlap and object metrics, label-free criteria, comparison of two models."""
