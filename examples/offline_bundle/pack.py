"""Pack what a machine without network lacks to run an engine and this package: wheels, in parts.

    python examples/offline_bundle/pack.py --vllm 0.26.0 --python 3.12 --torch 2.11.0 \\
        --part-mib 50 --out FOLDER
    python examples/offline_bundle/pack.py --list examples/offline_bundle/gpu-day.toml \\
        --python 3.12 --out FOLDER

What is packed and what is not, and why, is in the list (vllm-0.26.0.toml beside this file), which
imports.py finds. FOLDER then holds manifest.json and the parts, for unpack.py on the other machine;
FOLDER-wheels keeps what was downloaded.
"""

import argparse
import contextlib
import email
import fnmatch
import hashlib
import io
import lzma
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from bundle import MANIFEST, BundleError, Manifest, Progress, Sum, sum_of

MIB = 1 << 20
MODE, MODE_PROGRAM = 0o644, 0o755


@dataclass(frozen=True, slots=True)
class Entry:
    """A file to pack."""

    path: str
    """In the folder that unpack.py makes."""
    wheel: Path
    member: zipfile.ZipInfo
    is_program: bool


def read_list(file: Path, python: str, torch: str) -> dict[str, Any]:
    """The list of packages.

    Args:
        file: as imports.py writes it.
        python: of the machine.
        torch: likewise; empty for any.

    Raises:
        BundleError: there is none, or it was found with another Python or torch.
    """
    try:
        content = tomllib.loads(file.read_text("utf-8"))
    except OSError as error:
        raise BundleError(f"no list {file}: make one with imports.py") from error
    found = content["python"], content["there"]["torch"].partition("+")[0]
    if found != (python, torch or found[1]):
        raise BundleError(
            f"{file} is for Python {found[0]} and torch {found[1]}, asked for are {python} and "
            f"{torch or 'any'}: make a list with imports.py in such an environment"
        )
    return content


def wanted(content: Mapping[str, Any]) -> dict[str, str]:
    """Packages to pack and their versions: imported ones, and those added by hand."""
    return {**content["needed"], **{name: each[0] for name, each in content["added"].items()}}


def download(packages: Mapping[str, str], python: str, glibc: str, folder: Path) -> list[Path]:
    """One wheel for each package; those in the folder already are not fetched again.

    Raises:
        BundleError: pip could not get them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    command = [
        *(sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"),
        *("--implementation", "cp", "--python-version", python, "--dest", str(folder)),
        *(option for each in platforms(glibc) for option in ("--platform", each)),
        *(f"{name}=={version}" for name, version in packages.items()),
    ]
    done = subprocess.run(command, stdout=sys.stderr, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        raise BundleError(
            f"pip could not download the wheels:\n{done.stderr[-2000:]}\nMend the version in the "
            "list, name a newer --glibc if the machine has it, or add a wheel to the folder "
            f"{folder} by hand"
        )
    return [wheel_of(name, version, folder) for name, version in packages.items()]


def platforms(glibc: str) -> list[str]:
    """Tags of x86-64 wheels that run with a C library; pip takes only what is named."""
    newest = int(glibc.partition(".")[2])
    old = ("manylinux2014", "manylinux2010", "manylinux1", "linux")
    tags = [f"manylinux_2_{minor}" for minor in range(newest, 4, -1)]
    return [f"{tag}_x86_64" for tag in (*tags, *old)]


def wheel_of(name: str, version: str, folder: Path) -> Path:
    """A package's wheel in a folder.

    Raises:
        BundleError: there is not exactly one.
    """
    files = [
        file
        for file in sorted(folder.glob("*.whl"))
        if [_normal(part) for part in file.name.split("-")[:2]] == [_normal(name), _normal(version)]
    ]
    if len(files) != 1:
        found = ", ".join(file.name for file in files) or "none"
        raise BundleError(f"{folder}: expected one wheel of {name} {version}, found {found}")
    return files[0]


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def undecided(wheel: Path, content: Mapping[str, Any], torch: str) -> list[str]:
    """Requirements of vLLM's wheel of which the list says nothing.

    Raises:
        BundleError: it requires another torch.
    """
    with zipfile.ZipFile(wheel) as archive:
        name = next(each for each in archive.namelist() if each.endswith(".dist-info/METADATA"))
        required = email.message_from_bytes(archive.read(name)).get_all("Requires-Dist", [])
    if any(each.startswith("torch==") and each != f"torch=={torch}" for each in required):
        exact = next(each for each in required if each.startswith("torch=="))
        raise BundleError(f"{wheel.name} requires {exact}, --torch says {torch}")
    decided = {
        _normal(name)
        for table in ("needed", "added", "there", "left_out_packages")
        for name in content[table]
    }
    found = {_normal(re.split(r"[^\w.-]", each)[0]) for each in required if "extra ==" not in each}
    return sorted(found - decided)


def entries(wheels: Iterable[Path], patterns: Iterable[str]) -> tuple[list[Entry], list[Entry]]:
    """Files to pack and files left out, each by path.

    Raises:
        BundleError: two wheels have different files of one path, or a wheel cannot be read.
    """
    packed: dict[str, Entry] = {}
    left_out = []
    for wheel in wheels:
        for entry in _entries_of(wheel):
            if any(fnmatch.fnmatchcase(entry.path, pattern) for pattern in patterns):
                left_out.append(entry)
                continue
            other = packed.setdefault(entry.path, entry)
            if _checksum(other) != _checksum(entry):
                raise BundleError(
                    f"{entry.path} differs in {other.wheel.name} and {wheel.name}: leave one out"
                )
    return sorted(packed.values(), key=_path), sorted(left_out, key=_path)


def _path(entry: Entry) -> str:
    return entry.path


def _checksum(entry: Entry) -> tuple[int, int]:
    return entry.member.file_size, entry.member.CRC


def _entries_of(wheel: Path) -> Iterable[Entry]:
    """What is imported of a wheel: not its commands, headers and shared data."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            members = [each for each in archive.infolist() if not each.is_dir()]
    except (OSError, zipfile.BadZipFile) as error:
        raise BundleError(f"{wheel}: not a wheel ({error}); delete it and pack again") from error
    for member in members:
        placed = re.fullmatch(r"[^/]+\.data/([^/]+)/(.+)", member.filename)
        if placed is None or placed[1] in ("purelib", "platlib"):
            path = member.filename if placed is None else placed[2]
            is_program = bool(member.external_attr >> 16 & 0o111)
            yield Entry(path, wheel, member, is_program)


class Counted(io.BytesIO):
    """Content that tells how much of it was read."""

    def __init__(self, content: bytes, count: Callable[[int], None]) -> None:
        super().__init__(content)
        self._count = count

    def read(self, size: int | None = -1) -> bytes:
        """And count it."""
        piece = super().read(size)
        self._count(len(piece))
        return piece


class Parts(io.RawIOBase):
    """A file to write that is cut in parts."""

    def __init__(self, folder: Path, size: int) -> None:
        self._folder, self._size = folder, size
        self._part = io.BytesIO()
        self.sums: dict[str, Sum] = {}

    def writable(self) -> bool:
        """It is only written."""
        return True

    def write(self, data: Any) -> int:
        """To the last part, and on to the next where that is full."""
        left = memoryview(data)
        while left:
            room = self._size - self._part.tell()
            self._part.write(left[:room])
            left = left[room:]
            if self._part.tell() == self._size:
                self._finish()
        return len(data)

    def close(self) -> None:
        """Write what is left."""
        if self._part.tell():
            self._finish()
        super().close()

    def _finish(self) -> None:
        name = f"bundle.part{len(self.sums) + 1:02d}"
        content = self._part.getvalue()
        (self._folder / name).write_bytes(content)
        self.sums[name] = Sum(len(content), hashlib.sha256(content).hexdigest())
        self._part = io.BytesIO()


def write_archive(
    packed: Sequence[Entry], folder: Path, part_bytes: int
) -> tuple[dict[str, Sum], dict[str, Sum]]:
    """Parts of the archive, and its files; the same bytes for the same files and liblzma."""
    files = {}
    progress = Progress(sum(entry.member.file_size for entry in packed), "packing")
    with contextlib.ExitStack() as stack:
        wheels = {
            wheel: stack.enter_context(zipfile.ZipFile(wheel))
            for wheel in {entry.wheel for entry in packed}
        }
        parts = stack.enter_context(Parts(folder, part_bytes))
        compressed = stack.enter_context(lzma.LZMAFile(cast(BinaryIO, parts), "w"))
        archive = stack.enter_context(
            tarfile.open(fileobj=compressed, mode="w|", format=tarfile.PAX_FORMAT)
        )
        for entry in packed:
            content = wheels[entry.wheel].read(entry.member)
            header = tarfile.TarInfo(entry.path)
            header.size = len(content)
            header.mode = MODE_PROGRAM if entry.is_program else MODE
            archive.addfile(header, Counted(content, progress))
            files[entry.path] = sum_of(io.BytesIO(content))
    progress.close()
    return parts.sums, files


def pack(options: argparse.Namespace) -> Manifest:
    """Download, choose, compress, cut.

    Raises:
        BundleError: something could not be done.
    """
    content = read_list(options.list or default_list(options.vllm), options.python, options.torch)
    packages = wanted(content)
    if packages.get("vllm", "") != options.vllm:
        raise BundleError(f"the list has vLLM {packages.get('vllm')}, --vllm says {options.vllm}")
    wheels = download(
        packages, options.python, options.glibc, options.out.with_name(f"{options.out.name}-wheels")
    )
    for vllm in (wheel for wheel in wheels if wheel.name.startswith("vllm-")):
        if open_questions := undecided(vllm, content, options.torch):
            raise BundleError(
                f"{vllm.name} requires {', '.join(open_questions)}, of which the list says "
                "nothing: trace again with imports.py, or say in left_out_packages why they are "
                "not needed"
            )
    packed, left_out = entries(wheels, content["left_out_files"])
    unused = [
        pattern
        for pattern in content["left_out_files"]
        if not fnmatch.filter([entry.path for entry in left_out], pattern)
    ]
    if unused:
        raise BundleError(f"no wheel has {', '.join(unused)}: mend left_out_files of the list")
    options.out.mkdir(parents=True, exist_ok=True)
    for stale in (*options.out.glob("bundle.part*"), options.out / MANIFEST):
        stale.unlink(missing_ok=True)
    parts, files = write_archive(packed, options.out, round(options.part_mib * MIB))
    manifest = Manifest(
        vllm=options.vllm,
        python=options.python,
        torch=options.torch,
        packages=packages,
        there=content["there"],
        imports=content["imports"],
        environment=content["environment"],
        left_out_packages=content["left_out_packages"],
        left_out_files=_reasons(left_out, content["left_out_files"]),
        parts=parts,
        files=files,
        probe=content.get("probe", ["vllm"]),
    )
    manifest.write(options.out)
    return manifest


def _reasons(left_out: Iterable[Entry], patterns: Mapping[str, str]) -> dict[str, str]:
    return {
        entry.path: next(
            why for pattern, why in patterns.items() if fnmatch.fnmatchcase(entry.path, pattern)
        )
        for entry in left_out
    }


def default_list(vllm: str) -> Path:
    """The one of this folder."""
    return Path(__file__).with_name(f"vllm-{vllm}.toml")


def main(arguments: Sequence[str] | None = None) -> None:
    """Pack, and say what came of it."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--vllm", default="", metavar="VERSION", help="where the list has it")
    parser.add_argument("--python", required=True, metavar="X.Y", help="of the GPU machine")
    parser.add_argument("--torch", default="", metavar="VERSION", help="of the GPU machine")
    parser.add_argument("--part-mib", type=float, default=50.0, help="size of a part, default: 50")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--list", type=Path, help="default: vllm-VERSION.toml beside this file")
    parser.add_argument(
        "--glibc", default="2.35", help="C library of the GPU machine, or older (default: 2.35)"
    )
    options = parser.parse_args(arguments)
    if not options.vllm and not options.list:
        parser.error("name a list with --list, or --vllm")
    if options.vllm and not options.torch:
        parser.error("--vllm needs --torch: its wheel is for one version of it")
    try:
        manifest = pack(options)
    except BundleError as error:
        sys.exit(f"pack.py: {error}")
    size = sum(each.bytes for each in manifest.parts.values())
    print(
        f"{size / 1e6:.1f} MB in {len(manifest.parts)} parts: {len(manifest.packages)} packages, "
        f"{len(manifest.files)} files, left out {len(manifest.left_out_files)} files and "
        f"{len(manifest.left_out_packages)} packages; see {options.out / MANIFEST}"
    )


if __name__ == "__main__":
    main()
