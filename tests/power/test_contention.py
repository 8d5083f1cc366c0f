"""Who else is on a GPU: by process numbers, by lock files, and a thread that asks."""

import fcntl
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from llm_carbon_meter.faults import Faults
from llm_carbon_meter.power.contention import (
    LOCK_S,
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
from llm_carbon_meter.records import MeterError

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


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    """A folder, in which links of somebody else point to a file that is not there."""
    victim = tmp_path / "victim"
    victim.mkdir(mode=0o700)
    return victim


def refused(folder: Path) -> str:
    """Why the folder of the lock files is not used; the GPU's processes are judged all the same."""
    faults = Faults()
    neighbours = OtherProcesses(os.getpid(), folder, ["GPU-a"], faults)
    assert neighbours.on("GPU-a", [os.getpid(), GONE]) is Sharing.SHARED
    neighbours.close()
    assert faults.counts == {"watch": 1}
    with pytest.raises(MeterError) as error:
        GpuClaim(folder, "GPU-a")
    return str(error.value)


def test_no_link_of_somebody_leads_to_a_new_file(tmp_path: Path, victim: Path) -> None:
    """Neither by the folder nor by the lock file: a meter of root would make files elsewhere."""
    (tmp_path / "linked").symlink_to(victim)
    assert "is a symbolic link" in refused(tmp_path / "linked")
    locks = tmp_path / "locks"
    locks.mkdir(mode=0o700)
    (locks / "GPU-a.lock").symlink_to(victim / "made")
    assert "GPU-a.lock' cannot be opened" in refused(locks)
    assert not list(victim.iterdir())


def test_a_folder_that_others_may_write_is_refused(tmp_path: Path) -> None:
    """Whoever can open the lock file could keep it locked."""
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    assert "is open to others (mode 0777)" in refused(tmp_path / "open")


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a folder away")
def test_a_folder_of_another_user_is_refused(tmp_path: Path) -> None:
    """Its name can be guessed, so somebody may have made it before us."""
    (tmp_path / "theirs").mkdir(mode=0o700)
    os.chown(tmp_path / "theirs", 65534, 65534)
    assert "belongs to user 65534" in refused(tmp_path / "theirs")


def test_a_lock_that_is_never_given_up_is_waited_for_a_bounded_time(tmp_path: Path) -> None:
    """The meter starts without it, and what is wrong is one line."""
    with (tmp_path / "GPU-a.lock").open("w") as kept:
        fcntl.flock(kept, fcntl.LOCK_EX)
        began_s = time.monotonic()
        assert "another process keeps it locked" in refused(tmp_path)
        assert time.monotonic() - began_s < 2 * LOCK_S + 2


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
