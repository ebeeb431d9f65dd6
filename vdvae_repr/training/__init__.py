"""Training a VDVAE."""
