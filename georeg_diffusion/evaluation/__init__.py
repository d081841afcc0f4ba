"""Scores of a diffusion model, one a file."""
