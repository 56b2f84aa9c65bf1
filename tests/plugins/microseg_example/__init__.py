"""A package outside microseg that adds one of each of its extension points; `tests/test_plugins.py` installs it."""
