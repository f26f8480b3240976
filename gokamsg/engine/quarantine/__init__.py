"""Records that could not be handled: put aside with the later ones of their keys, looked at, mended, retried."""
