"""Images in: sources and toy faces."""
