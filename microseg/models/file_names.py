"""Names of the two files that a network is kept in."""

__all__ = ["CONFIG_FILE", "WEIGHTS_FILE"]

WEIGHTS_FILE = "weights.safetensors"
CONFIG_FILE = "network.json"
