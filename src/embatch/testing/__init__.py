"""Fakes that ship with the product, for testing what is built on embatch."""

from embatch.testing.engine import FakeEngine

__all__ = ["FakeEngine"]
