"""``python -m georeg_diffusion``, which torchrun and accelerate launch."""

from georeg_diffusion.cli import main

main()
