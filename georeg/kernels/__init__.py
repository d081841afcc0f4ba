"""Operators with first- and second-order rules of their own, where PyTorch has none or wastes work."""

from georeg.kernels.convolution import convolution

__all__ = ["convolution"]
