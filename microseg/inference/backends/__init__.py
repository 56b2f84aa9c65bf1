"""Backends: how a network is computed on a device. See `microseg.inference.backends.backend`."""
