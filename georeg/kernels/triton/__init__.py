"""The rules of group norm and attention as Triton kernels, for CUDA; everything runs without them, on plain PyTorch."""

from georeg.kernels.triton.support import is_used, why_not

__all__ = ["is_used", "why_not"]
