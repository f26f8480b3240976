"""Goka in Python, and the messaging service of its best-known tutorial."""

__version__ = "0.1.0"
