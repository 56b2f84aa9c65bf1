"""Versions of datasets; the only package that imports DVC."""
