"""Raycall: content understanding and candidate generation on Ray, PyTorch and FAISS."""

__version__ = "0.1.0"
