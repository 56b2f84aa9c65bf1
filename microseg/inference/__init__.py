"""Inference: tiling, streaming of slides, batches."""
