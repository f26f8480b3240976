"""Goka in Python: a general stream-processing library; knows nothing of messages, HTTP or the command line."""
