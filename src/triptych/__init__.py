"""Triptych: decode, align and interpret small models, and say what changed and whether to trust it."""

__version__ = "0.1.0"
