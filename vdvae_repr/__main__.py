"""The command line as `python -m vdvae_repr`."""

from vdvae_repr.cli import main

if __name__ == "__main__":
    main()
