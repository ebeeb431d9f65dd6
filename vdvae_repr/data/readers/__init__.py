"""One reader a file: folders, tars, CSV manifests, array files."""
