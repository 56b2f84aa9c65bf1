"""Health of an installation: the commands `status`, `history` and `doctor`."""
