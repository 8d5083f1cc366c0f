"""Fixtures of real servers, for every folder of tests."""

from .metered import start_server, stub_library, tiny_model

__all__ = ["start_server", "stub_library", "tiny_model"]
