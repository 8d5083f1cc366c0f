"""GPUs of the compiled stub for a campaign."""

from tests.power.conftest import stub, stub_directory, stub_library

__all__ = ["stub", "stub_directory", "stub_library"]
