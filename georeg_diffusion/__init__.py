"""Isometric Diffusion: the regularisers of georeg on diffusion models, from training to scores."""
