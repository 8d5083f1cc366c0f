"""The public data sets, for the examples that read them."""

from tests.training.conftest import public_data

__all__ = ["public_data"]
