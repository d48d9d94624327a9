"""What every room may use: files, progress, seeds, digests, modes of modules. Knows nothing of GANs."""
