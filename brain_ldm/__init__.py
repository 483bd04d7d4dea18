"""Synthetic brain MRI from conditional latent diffusion: train, sample, evaluate."""

__version__ = "0.1.0"
