"""Operators with first- and second-order rules of their own, where PyTorch has none or wastes work."""

from georeg.kernels.convolution import convolution
from georeg.kernels.install import first_order, fused
from georeg.kernels.mode import products_only

__all__ = ["convolution", "first_order", "fused", "products_only"]
