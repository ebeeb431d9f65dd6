"""Latent stores: extraction and reading."""
