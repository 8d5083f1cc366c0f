"""Prepare the environment of a GPU day on a host without network, and start it there.

    python3 examples/gpu_day/start.py --out OUT --minutes 8 --bundle FOLDER

Needs Python's standard library alone. The day runs in an environment of its own, in the scratch
folder: it sees every package of the Python that runs this, torch among them, and FOLDER, a bundle
of offline_bundle/pack.py, fills in what that lacks. Nothing of the host is changed. Without a
bundle the day runs in this Python.
"""

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
MANIFEST = "manifest.json"
UNPACK = HERE.parent / "offline_bundle" / "unpack.py"
NEEDED = {
    "numpy": "the meter",
    "pynvml": "the meter (nvidia-ml-py)",
    "msgspec": "the meter",
    "zmq": "the meter (pyzmq)",
    "prometheus_client": "the meter",
    "opentelemetry": "the meter (opentelemetry-api)",
    "httpx": "the meter",
    "safetensors": "the meter",
    "tqdm": "the meter",
    "torch": "loads and models; it never travels in a bundle",
    "transformers": "the server; it never travels in a bundle",
    "tokenizers": "the server",
    "accelerate": "the server",
    "fastapi": "the server",
    "uvicorn": "the server",
    "pydantic": "the server",
    "openai": "the requests",
}
"""Modules, and what for; matplotlib only draws."""
CHECK = """
import importlib.util, json, sys
print(json.dumps([name for name in json.loads(sys.argv[1]) if not importlib.util.find_spec(name)]))
"""


class StartError(Exception):
    """What was tried, what was found, what to do."""


def missing(names: Sequence[str]) -> list[str]:
    """Modules that this Python does not find."""
    return [name for name in names if importlib.util.find_spec(name) is None]


def site_folders(path: Sequence[str]) -> list[str]:
    """The folders of this Python that hold packages, in its own order."""
    return [entry for entry in path if Path(entry).name in ("site-packages", "dist-packages")]


def path_file(folders: Sequence[str], bundle: Path) -> str:
    """Text of a .pth file: the host's packages first, the bundle only fills in."""
    lines = [f"import site; site.addsitedir({folder!r})" for folder in folders]
    return "\n".join([*lines, str(bundle), str(ROOT), ""])


def make_environment(folder: Path, bundle: Path) -> Path:
    """An environment that sees the host's packages, the bundle's and this repository.

    `python -m venv --system-site-packages` would not do: where the host's Python is itself an
    environment, that sees the packages of the Python under it.

    Returns:
        Its Python.

    Raises:
        StartError: this Python cannot make one.
    """
    python = folder / "bin" / "python"
    if not python.exists():
        command = [sys.executable, "-m", "venv", "--without-pip", str(folder)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise StartError(
                f"{' '.join(command)} failed: {(done.stderr or done.stdout).strip()[-300:]}; "
                "name another Python (make gpu-day PYTHON=…) whose module venv works"
            )
    (packages,) = folder.glob("lib/python*/site-packages")
    text = path_file(site_folders(sys.path), bundle.resolve())
    (packages / "gpu-day.pth").write_text(text, "utf-8")
    return python


def unpack(bundle: Path, into: Path, python: Path) -> None:
    """Unpack and check what was carried.

    Raises:
        StartError: it is broken, not whole, or lacks something.
    """
    parts = sorted(path for path in bundle.iterdir() if path.is_file()) if bundle.is_dir() else []
    if not any(path.name == MANIFEST for path in parts):
        raise StartError(f"{bundle} has no {MANIFEST} of pack.py: name the bundle's folder")
    command = [sys.executable, str(UNPACK), *map(str, parts)]
    if subprocess.run([*command, "--into", str(into), "--python", str(python)]).returncode:
        raise StartError(f"the bundle {bundle} cannot be used; the reason is above")


def install(python: Path) -> None:
    """This package with its entry points, through which vLLM finds it; transformers needs none."""
    options = ("--no-index", "--no-deps", "--no-build-isolation", "--quiet", "--editable", ".")
    command = [str(python), "-m", "pip", "install", "--disable-pip-version-check", *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        print(
            f"gpu-day: no entry points, which vLLM alone needs ({reason[:200]})",
            file=sys.stderr,
            flush=True,
        )


def environment(bundle: Path, scratch: Path) -> Path:
    """The Python of the day's environment, made once.

    Raises:
        StartError: it cannot be made, or the bundle cannot be used.
    """
    folder, packages = scratch / "environment", scratch / "bundle"
    python = make_environment(folder, packages)
    ready = folder / "ready"
    if not ready.exists():
        unpack(bundle, packages, python)
        install(python)
        ready.touch()
    return python


def check_out(out: Path) -> None:
    """Refuse before anything is unpacked what could not be written.

    Raises:
        StartError: the folder cannot be written.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        probe = out / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise StartError(f"OUT={out} cannot be written: {error.strerror}") from error


def check_modules(python: str) -> None:
    """Refuse to start without what every part needs.

    Raises:
        StartError: names all modules that are missing.
    """
    asked = [python, "-c", CHECK, json.dumps(list(NEEDED))]
    done = subprocess.run(asked, capture_output=True, text=True)
    if done.returncode:
        raise StartError(f"{python} does not run: {done.stderr.strip()[-300:]}")
    absent = json.loads(done.stdout)
    if absent:
        told = "; ".join(f"{name}: for {NEEDED[name]}" for name in absent)
        raise StartError(
            f"{python} lacks {told}. With network `make demo` makes .venv; without, carry a "
            "bundle and name its folder: make gpu-day OUT=… BUNDLE=FOLDER "
            "(examples/README.md has the command that packs it)"
        )


def variables(bundle: Path) -> dict[str, str]:
    """Without which an engine misses what the bundle leaves out."""
    wanted: dict[str, str] = json.loads((bundle / MANIFEST).read_text("utf-8"))["environment"]
    return wanted


def arguments_of(options: argparse.Namespace, scratch: Path, left_minutes: float) -> list[str]:
    """For day.py."""
    return [
        *("run", "--out", str(options.out), "--scratch", str(scratch)),
        *("--minutes", f"{left_minutes:.3f}", "--power", options.power),
        *("--engine", options.engine),
    ]


def run(options: argparse.Namespace) -> int:
    """Prepare, then go over to day.py; the time of both counts.

    Raises:
        StartError: the host lacks something.
    """
    began_s = time.monotonic()
    if not options.minutes > 0:
        raise StartError(f"MINUTES={options.minutes:g}: expected more than 0")
    out = options.out.resolve()
    check_out(out)
    scratch = (options.scratch or out.with_name(out.name + "-scratch")).resolve()
    scratch.mkdir(parents=True, exist_ok=True)
    python = str(environment(options.bundle, scratch)) if options.bundle else sys.executable
    check_modules(python)
    left_minutes = options.minutes - (time.monotonic() - began_s) / 60
    command = [python, str(HERE / "day.py"), *arguments_of(options, scratch, left_minutes)]
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    wanted = variables(options.bundle) if options.bundle else {}
    sys.stdout.flush()
    os.execve(python, command, {**os.environ, **wanted, "PYTHONPATH": path})  # noqa: S606 - Python itself


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="of the results")
    parser.add_argument("--minutes", type=float, default=8.0, help="of all of it (default: 8)")
    parser.add_argument(
        "--power", choices=("auto", "nvml", "stub"), default="auto",
        help="auto and nvml: this host's GPU; stub: a rehearsal on the CPU, all of it simulated",
    )  # fmt: skip
    parser.add_argument("--engine", choices=("transformers", "vllm"), default="transformers")
    parser.add_argument("--bundle", type=Path, metavar="FOLDER", help="of pack.py, carried here")
    parser.add_argument(
        "--scratch", type=Path, metavar="FOLDER", help="models and logs, up to 20 GB"
    )
    try:
        return run(parser.parse_args(arguments))
    except StartError as error:
        print(f"gpu-day: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
