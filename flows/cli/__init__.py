"""The ``microseg`` command."""
