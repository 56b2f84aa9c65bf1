"""How a network is computed on a device."""
