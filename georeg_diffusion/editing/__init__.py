"""Edits in the latent space: directions, found or learned, and what moves samples along them."""
