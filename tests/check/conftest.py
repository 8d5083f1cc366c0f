"""Engines that have exactly the names that are wrapped."""

from collections.abc import Callable
from pathlib import Path

import pytest

from llm_carbon_meter.servers.transformers import hooks as transformers_hooks
from llm_carbon_meter.servers.vllm import hooks as vllm_hooks

TALKATIVE = """
import atexit
__version__ = "9.9.9"
print("a banner", end="")
atexit.register(print, "a farewell")
"""

MakeVllm = Callable[..., Path]


HOOKS = (*vllm_hooks.HOOKS, *transformers_hooks.NEEDED)
NAMES = {
    target: [hook.method for hook in HOOKS if hook.target == target]
    for target in dict.fromkeys(hook.target for hook in HOOKS)
}


@pytest.fixture
def make_vllm(tmp_path: Path) -> MakeVllm:
    """Writes packages ``vllm`` and ``transformers`` without some names; what to put in
    PYTHONPATH."""

    def make(*without: str) -> Path:
        site = tmp_path / "site"
        for place, names in NAMES.items():
            module, _, owner = place.partition(":")
            path = site / module.replace(".", "/")
            path.mkdir(parents=True, exist_ok=True)
            there = [name for name in names if name not in without] or ["other"]
            if owner and owner not in without:
                body = "".join(f"    def {name}(self): pass\n" for name in there)
                text = f"class {owner}:\n{body}"
            else:
                text = "".join(f"def {name}(app): pass\n" for name in there)
            with (path / "__init__.py").open("a") as file:
                file.write(text)
        for folder in (path for path in site.rglob("*") if path.is_dir()):
            (folder / "__init__.py").touch()
        for engine in ("vllm", "transformers"):
            (site / engine / "__init__.py").write_text(TALKATIVE)
        return site

    return make
