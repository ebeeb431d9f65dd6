"""Brains: what each layer says of measured responses, and what responses say of each layer."""
