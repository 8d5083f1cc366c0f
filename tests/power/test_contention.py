"""Who else is on a GPU: by process numbers, by lock files, and a thread that asks."""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from llm_carbon_meter.faults import Faults
from llm_carbon_meter.power.contention import (
    GpuClaim,
    Judge,
    OtherProcesses,
    Sharing,
    Watch,
    ancestry,
    own_processes,
    parent_of,
    sees_host_numbers,
    sharing,
)

GONE = 2**22 + 1
"""Above every process number that Linux gives."""


@pytest.mark.parametrize(
    ("listed", "host_numbers", "expected"),
    [
        ([], True, Sharing.ALONE),
        ([10, 11], True, Sharing.ALONE),
        ([10, 99], True, Sharing.SHARED),
        ([99], True, Sharing.SHARED),
        ([], False, Sharing.UNKNOWN),
        ([99], False, Sharing.UNKNOWN),
        ([10], False, Sharing.ALONE),
        ([10, 99], False, Sharing.SHARED),
    ],
)
def test_sharing(listed: list[int], host_numbers: bool, expected: Sharing) -> None:
    """Strangers share the GPU, unless none of the numbers can be known for ours or theirs."""
    own = {10, 11} & set(listed)
    assert sharing(listed, own, host_numbers=host_numbers) is expected


@pytest.mark.parametrize(
    ("parents", "own"),
    [
        ({5: 4, 4: 1}, {1, 4, 5}),
        ({5: 4, 6: 5, 7: 6, 8: 4, 4: 1}, {1, 4, 5, 6, 7}),
        ({}, {5}),
    ],
)
def test_own_processes(parents: Mapping[int, int], own: set[int]) -> None:
    """Workers below an engine and the server above it are its own, the server's others are not."""
    assert own_processes(range(1, 10), 5, lambda pid: parents.get(pid, 0)) == own


def test_a_child_of_this_process_is_its_own() -> None:
    """And this process is its child's; one that has ended is nobody's."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        listed = [os.getpid(), child.pid, GONE]
        assert own_processes(listed, os.getpid()) == {os.getpid(), child.pid}
        assert ancestry(child.pid)[:2] == [child.pid, os.getpid()]
        child.communicate(b"\n")
    assert parent_of(GONE) == 0


@pytest.mark.parametrize(
    ("namespace", "listed", "expected"),
    [
        ("pid:[4026531836]", [], True),
        ("pid:[4026531836]", [7], True),
        ("pid:[4026531836]", [7, 8], False),
        ("pid:[4026532000]", [7], False),
        (None, [7], False),
    ],
)
def test_host_numbers(
    tmp_path: Path, namespace: str | None, listed: list[int], expected: bool
) -> None:
    """Outside of any namespace, where everybody listed can be seen."""
    (tmp_path / "7").mkdir()
    (tmp_path / "self/ns").mkdir(parents=True)
    if namespace:
        (tmp_path / "self/ns/pid").symlink_to(namespace)
    assert sees_host_numbers(listed, tmp_path) is expected


def test_a_name_with_brackets_is_read_right(tmp_path: Path) -> None:
    """A process may call itself anything."""
    (tmp_path / "3").mkdir()
    (tmp_path / "3" / "stat").write_text("3 (a) b) c) S 2 0")
    assert parent_of(3, tmp_path) == 2


HOLD = """
import sys
from pathlib import Path
from llm_carbon_meter.power.contention import GpuClaim
claim = GpuClaim(Path(sys.argv[1]), "GPU-a")
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def other_meter(tmp_path: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """Another process with a claim on GPU-a."""
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        yield other
        other.kill()


def test_two_meters_on_a_gpu_see_each_other(
    tmp_path: Path, other_meter: "subprocess.Popen[bytes]"
) -> None:
    """As long as both live: a claim ends with its process, also by kill -9."""
    claim, elsewhere = GpuClaim(tmp_path, "GPU-a"), GpuClaim(tmp_path, "GPU-b")
    assert claim.contended()
    assert claim.contended()  # asking does not give it up
    assert not elsewhere.contended()
    other_meter.kill()
    other_meter.wait()
    assert not claim.contended()
    claim.close()
    elsewhere.close()


def test_neighbours_judge_by_claims_and_by_numbers(
    tmp_path: Path, other_meter: "subprocess.Popen[bytes]"
) -> None:
    """A claim of another meter counts where the numbers say nothing."""
    faults = Faults()
    neighbours = OtherProcesses(os.getpid(), tmp_path, ["GPU-a", "GPU-b"], faults)
    assert neighbours.on("GPU-a", []) is Sharing.SHARED
    assert neighbours.on("GPU-b", [os.getpid()]) is Sharing.ALONE
    assert neighbours.on("GPU-b", [os.getpid(), GONE]) is Sharing.SHARED
    neighbours.close()
    assert not faults.counts


def test_without_a_folder_the_numbers_still_count(tmp_path: Path) -> None:
    """A folder that cannot be made is noted once."""
    blocked = tmp_path / "file"
    blocked.write_text("")
    faults = Faults()
    neighbours = OtherProcesses(os.getpid(), blocked / "folder", ["GPU-a"], faults)
    assert neighbours.on("GPU-a", [os.getpid(), GONE]) is Sharing.SHARED
    neighbours.close()
    assert faults.counts == {"watch": 1}


def test_the_watch_reviews_at_its_start_and_survives_an_error(tmp_path: Path) -> None:
    """An error is counted and never rises; stopping waits for no period."""
    faults, reviewed = Faults(), threading.Event()

    def review(judge: Judge) -> None:
        reviewed.set()
        raise OSError("no list of processes")

    watch = Watch(review, OtherProcesses(os.getpid(), tmp_path, ["GPU-a"], faults), faults)
    watch.start()
    assert reviewed.wait(5)
    watch.stop()
    assert faults.counts == {"watch": 1}
