"""The commands: one file for each group of them. Each parses nothing and decides little: it takes checked settings,
calls engine, messaging or supervisor, and prints through the console.

Heavy imports stand inside the functions, so that a command loads only what it uses.
"""
