"""Quality and speed, measured by hand: each module prints its tables."""
