"""Parameters, environment variables and the folders below ``MICROSEG_HOME``."""
