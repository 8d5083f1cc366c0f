"""Unpack on the machine without network what pack.py packed, part by part, and check it there.

    python examples/offline_bundle/unpack.py CARRIED/* --into FOLDER

Parts may come over several calls, with manifest.json in the first: FOLDER keeps them. When all are
there they are unpacked and checked, and vLLM (or what the bundle is for) is imported. Ends with 0
when that can be used, with 3 while parts are missing, with 1 when something is wrong.
"""

import argparse
import io
import json
import lzma
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from bundle import MANIFEST, PIECE, BundleError, Manifest, Progress, Sum, sum_of

KEPT = ".bundle"
"""In FOLDER: the manifest, and the parts until they are unpacked."""
UNPACKED = "unpacked"
PARTS_MISSING = 3
PROBE = """
import importlib, importlib.metadata, importlib.util, json, sys, traceback

def version(name):
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""

asked = json.loads(sys.argv[1])
found = {
    "python": "%d.%d" % sys.version_info[:2],
    "versions": {name: version(name) for name in asked["packages"]},
    "missing": [name for name in asked["imports"] if importlib.util.find_spec(name) is None],
    "vllm": "", "error": "",
}
try:
    for name in asked["probe"]:
        importlib.import_module(name)
    found["vllm"] = getattr(sys.modules.get("vllm"), "__version__", "")
except Exception:
    found["error"] = traceback.format_exc()
json.dump(found, open(sys.argv[2], "w"))
"""


def manifest_of(given: Iterable[Path], into: Path) -> Manifest:
    """The bundle's manifest, among what is given or kept from an earlier call; keeps it.

    Raises:
        BundleError: there is none, or it is of another bundle than what the folder has.
    """
    kept = into / KEPT / MANIFEST
    new = next((path for path in given if path.name == MANIFEST), None)
    if new is None and not kept.exists():
        raise BundleError(f"no {MANIFEST} given, and {into} has none: give it with the first part")
    manifest = Manifest.read(kept if new is None else new)
    if new is not None and kept.exists() and Manifest.read(kept) != manifest:
        raise BundleError(f"{into} has another bundle: name another folder, or delete it")
    if not kept.exists():
        kept.parent.mkdir(parents=True, exist_ok=True)
        manifest.write(kept.parent)
    return manifest


def keep(given: Iterable[Path], manifest: Manifest, into: Path) -> None:
    """Keep good parts.

    Raises:
        BundleError: names all that are broken or of another bundle; the others are kept.
    """
    wrong = []
    for path in given:
        wanted = manifest.parts.get(path.name)
        if path.name == MANIFEST or _is_kept(path.name, manifest, into):
            continue
        if wanted is None:
            wrong.append(f"{path}: no part of this bundle")
        elif problem := _problem(path, wanted):
            wrong.append(f"{problem}; bring it again")
        else:
            unfinished = into / KEPT / f"{path.name}.unfinished"
            shutil.copyfile(path, unfinished)
            unfinished.rename(into / KEPT / path.name)
    if wrong:
        raise BundleError("\n".join(wrong))


def _problem(path: Path, wanted: Sum) -> str:
    try:
        with path.open("rb") as file:
            found = sum_of(file)
    except OSError as error:
        return str(error)
    if found == wanted:
        return ""
    return (
        f"{path}: {found.bytes} bytes with SHA-256 {found.sha256}, "
        f"expected {wanted.bytes} with {wanted.sha256}"
    )


def _is_kept(name: str, manifest: Manifest, into: Path) -> bool:
    # By size: a part is renamed to its name when it is whole, and its files are checked later.
    part = into / KEPT / name
    return part.is_file() and part.stat().st_size == manifest.parts[name].bytes


def missing(manifest: Manifest, into: Path) -> list[str]:
    """Parts that have not come."""
    return [name for name in manifest.parts if not _is_kept(name, manifest, into)]


class Joined(io.RawIOBase):
    """Files, read as one."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = list(paths)
        self._file = io.BytesIO()

    def readable(self) -> bool:
        """It is only read."""
        return True

    def readinto(self, buffer: Any) -> int:
        """From the file at hand, or the next."""
        while not (piece := self._file.read(len(buffer))) and self._paths:
            self._file = io.BytesIO(self._paths.pop(0).read_bytes())
        buffer[: len(piece)] = piece
        return len(piece)


def unpack(manifest: Manifest, into: Path) -> None:
    """Unpack what is whole, then let the parts go.

    Raises:
        BundleError: the archive is broken, or is not what the manifest says.
    """
    parts = [into / KEPT / name for name in manifest.parts]
    progress = Progress(sum(each.bytes for each in manifest.files.values()), "unpacking")
    try:
        with (
            lzma.LZMAFile(io.BufferedReader(Joined(parts), PIECE)) as plain,
            tarfile.open(fileobj=plain, mode="r|") as archive,
        ):
            for member in archive:
                _place(archive, member, manifest, into)
                progress(member.size)
    except (lzma.LZMAError, tarfile.TarError, EOFError) as error:
        raise BundleError(
            f"the parts make no archive ({error}): pack and bring all again"
        ) from error
    finally:
        progress.close()
    check_files(manifest, into)
    (into / KEPT / UNPACKED).touch()
    for part in parts:
        part.unlink()


def _place(
    archive: tarfile.TarFile, member: tarfile.TarInfo, manifest: Manifest, into: Path
) -> None:
    content = archive.extractfile(member)
    target = into / member.name
    if member.name not in manifest.files or content is None or ".." in target.parts:
        raise BundleError(f"the archive has {member.name}, which is not in {MANIFEST}")
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("wb") as file:
        shutil.copyfileobj(content, file, PIECE)
    target.chmod(member.mode)


def check_files(manifest: Manifest, into: Path) -> None:
    """Every file is there, as it was packed.

    Raises:
        BundleError: names those that are not.
    """
    progress = Progress(len(manifest.files), "checking")
    problems: list[str] = []
    for name, wanted in manifest.files.items():
        problems += filter(None, [_problem(into / name, wanted)])
        progress(1)
    progress.close()
    if problems:
        raise BundleError("\n".join([*problems[:20], f"delete {into} and unpack again"]))


def check_imports(manifest: Manifest, into: Path, python: str) -> tuple[list[str], list[str]]:
    """What stands against using vLLM here, and what is only worth knowing.

    Raises:
        BundleError: Python cannot be started, or died.
    """
    packages = [*manifest.packages, *manifest.there, "torch"]
    modules = {"imports": list(manifest.imports), "probe": list(manifest.probe)}
    asked = json.dumps({"packages": packages, **modules})
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder, "found.json")
        command = [python, "-c", PROBE, asked, str(result)]
        try:
            # Away from here: a folder vllm of this one would be imported.
            done = subprocess.run(command, cwd=folder, env=environment(into))
        except OSError as error:
            raise BundleError(f"{python}: {error}; name another with --python") from error
        if not result.exists():
            what = ", ".join(manifest.probe)
            raise BundleError(
                f"{python} ended with code {done.returncode} while it imported {what}"
            )
        return judge(manifest, json.loads(result.read_text("utf-8")))


def environment(into: Path) -> dict[str, str]:
    """In which Python finds the bundle first."""
    path = filter(None, (str(into.resolve()), os.environ.get("PYTHONPATH")))
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path)}


def judge(manifest: Manifest, found: dict[str, Any]) -> tuple[list[str], list[str]]:
    """Problems and remarks, of what the machine's Python found."""
    versions = found["versions"]
    torch = versions["torch"].partition("+")[0]
    wanted = {**manifest.there, **manifest.packages}
    absent = [name for name in wanted if not versions[name]]
    problems = []
    if found["python"] != manifest.python:
        problems.append(f"Python is {found['python']}, the bundle is for {manifest.python}")
    if not torch or (manifest.torch and torch != manifest.torch):
        problems.append(
            f"torch is {torch or 'missing'}, the bundle is for {manifest.torch or 'any'}"
        )
    if absent:
        problems.append(f"missing packages: {', '.join(absent)}: add them to the list, pack again")
    if found["missing"]:
        problems.append(f"missing modules: {', '.join(found['missing'])}")
    if found["error"]:
        problems.append(f"import {', '.join(manifest.probe)} failed:\n{found['error']}")
    elif found["vllm"].partition("+")[0] != manifest.vllm:
        problems.append(f"vLLM is {found['vllm']}, the bundle has {manifest.vllm}")
    others = [
        f"{name} {versions[name]} ({version})"
        for name, version in wanted.items()
        if versions[name] and versions[name].partition("+")[0] != version.partition("+")[0]
    ]
    remarks = [f"other versions than the list's, in brackets: {', '.join(others)}"]
    return problems, remarks if others else []


def run(options: argparse.Namespace) -> int:
    """Take what has come; unpack and check when it is all there.

    Raises:
        BundleError: something is broken.
    """
    manifest = manifest_of(options.parts, options.into)
    if (options.into / KEPT / UNPACKED).exists():
        check_files(manifest, options.into)
    else:
        keep(options.parts, manifest, options.into)
        if lacking := missing(manifest, options.into):
            here = len(manifest.parts) - len(lacking)
            print(f"{here} of {len(manifest.parts)} parts are here, missing: {', '.join(lacking)}")
            return PARTS_MISSING
        unpack(manifest, options.into)
    print(f"{len(manifest.files)} files of {len(manifest.packages)} packages are as packed")
    problems, remarks = check_imports(manifest, options.into, options.python)
    what = f"vLLM {manifest.vllm}" if manifest.vllm else ", ".join(manifest.probe)
    print("\n".join([*remarks, *(problems or [f"{what} can be imported; set"])]))
    print(f'export PYTHONPATH="{options.into.resolve()}${{PYTHONPATH:+:$PYTHONPATH}}"')
    for name, value in manifest.environment.items():
        print(f"export {name}={value}")
    return 1 if problems else 0


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("parts", nargs="*", type=Path, metavar="PART", help=f"and {MANIFEST}")
    parser.add_argument("--into", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--python", default=sys.executable, help="that will run vLLM")
    try:
        return run(parser.parse_args(arguments))
    except BundleError as error:
        print(f"unpack.py: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
