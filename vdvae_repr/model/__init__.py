"""The very deep VAE: architecture, likelihood, layers, weights."""
