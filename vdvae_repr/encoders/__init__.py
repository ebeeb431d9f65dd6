"""What can fill a latent store: a VDVAE, a timm model, FaceNet, or a network of the user's own."""
