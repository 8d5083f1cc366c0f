"""Who else is on a GPU: by process numbers, by lock files, and a thread that asks."""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_carbon_meter.faults import Faults
from llm_carbon_meter.power.contention import (
    GpuClaim,
    Judge,
    Neighbours,
    Sharing,
    Watch,
    read_parents,
    relatives,
    sees_host_numbers,
    sharing,
)


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
    assert sharing(listed, {10, 11}, host_numbers=host_numbers) is expected


@pytest.mark.parametrize(
    ("parents", "family"),
    [
        ({5: 4, 4: 1, 1: 0}, {1, 4, 5}),
        ({5: 4, 6: 5, 7: 6, 8: 4, 4: 1, 1: 0}, {1, 4, 5, 6, 7}),
        ({}, {5}),
    ],
)
def test_relatives(parents: Mapping[int, int], family: set[int]) -> None:
    """Workers below an engine and the server above it are its own, the server's others are not."""
    assert relatives(5, parents) == family


@given(st.dictionaries(st.integers(2, 30), st.integers(1, 30), max_size=30))
def test_relatives_of_any_tree(parents: dict[int, int]) -> None:
    """Whatever the table of a busy machine says while it changes, an answer comes."""
    parents = {child: parent for child, parent in parents.items() if parent < child}
    assert 7 in relatives(7, parents)


def test_the_process_table_has_this_process_and_its_child() -> None:
    """A child's parent is this process, and both are relatives."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        parents = read_parents()
        child.communicate(b"\n")
    assert parents[child.pid] == os.getpid()
    assert {os.getpid(), child.pid} <= relatives(os.getpid(), parents)
    assert isinstance(sees_host_numbers(), bool)


def test_a_process_that_ends_while_it_is_read_is_left_out(tmp_path: Path) -> None:
    """Its folder is there and its file is not; names with brackets are read right."""
    for pid, stat in ((3, "3 (a) b) c) S 2 0"), (4, None)):
        (tmp_path / str(pid)).mkdir()
        if stat:
            (tmp_path / str(pid) / "stat").write_text(stat)
    (tmp_path / "meminfo").write_text("")
    assert read_parents(tmp_path) == {3: 2}


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
    neighbours = Neighbours(os.getpid(), tmp_path, ["GPU-a", "GPU-b"], faults)
    assert neighbours.on("GPU-a", []) is Sharing.SHARED
    assert neighbours.on("GPU-b", [os.getpid()]) is Sharing.ALONE
    assert neighbours.on("GPU-b", [os.getpid(), 2**22 + 1]) is Sharing.SHARED
    neighbours.close()
    assert not faults.counts


def test_without_a_folder_the_numbers_still_count(tmp_path: Path) -> None:
    """A folder that cannot be made is noted once."""
    blocked = tmp_path / "file"
    blocked.write_text("")
    faults = Faults()
    neighbours = Neighbours(os.getpid(), blocked / "folder", ["GPU-a"], faults)
    assert neighbours.on("GPU-a", [os.getpid(), 2**22 + 1]) is Sharing.SHARED
    neighbours.close()
    assert faults.counts == {"watch": 1}


def test_the_watch_reviews_at_its_start_and_survives_an_error(tmp_path: Path) -> None:
    """An error is counted and never rises; stopping waits for no period."""
    faults, reviewed = Faults(), threading.Event()

    def review(judge: Judge) -> None:
        reviewed.set()
        raise OSError("no list of processes")

    watch = Watch(review, Neighbours(os.getpid(), tmp_path, ["GPU-a"], faults), faults)
    watch.start()
    assert reviewed.wait(5)
    watch.stop()
    assert faults.counts == {"watch": 1}
