"""Training and scoring a VDVAE or a PixelCNN."""
