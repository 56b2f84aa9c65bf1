"""Reading and writing labels."""
