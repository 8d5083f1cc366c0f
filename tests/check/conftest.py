"""The compiled NVML, and a vLLM that has exactly the names that are wrapped."""

from collections.abc import Callable
from pathlib import Path

import pytest

from llm_carbon_meter.servers.vllm_hooks import HOOKED
from tests.power.conftest import stub, stub_directory, stub_library

__all__ = ["make_vllm", "stub", "stub_directory", "stub_library"]

TALKATIVE = """
import atexit
__version__ = "9.9.9"
print("a banner", end="")
atexit.register(print, "a farewell")
"""

MakeVllm = Callable[..., Path]


@pytest.fixture
def make_vllm(tmp_path: Path) -> MakeVllm:
    """Writes a package ``vllm`` without some names, and returns what to put in PYTHONPATH."""

    def make(*without: str) -> Path:
        for place, names in HOOKED.items():
            module, _, owner = place.partition(":")
            path = tmp_path / "site" / module.replace(".", "/")
            path.mkdir(parents=True, exist_ok=True)
            there = [name for name in names if name not in without] or ["other"]
            if owner and owner not in without:
                body = "".join(f"    def {name}(self): pass\n" for name in there)
                text = f"class {owner}:\n{body}"
            else:
                text = "".join(f"def {name}(app): pass\n" for name in there)
            (path / "__init__.py").write_text(text)
        top = tmp_path / "site" / "vllm"
        for folder in [top, *(path for path in top.rglob("*") if path.is_dir())]:
            (folder / "__init__.py").touch()
        (top / "__init__.py").write_text(TALKATIVE)
        return top.parent

    return make
