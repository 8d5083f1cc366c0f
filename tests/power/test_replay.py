"""A recorded trace behind the protocol, on a clock that the test moves."""

import math
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llm_carbon_meter.power.replay import ReplayMeter
from llm_carbon_meter.records import PowerError, Quality, Source

WATTS = "t_s,gpu,watts\n0,0,100\n0,1,50\n2,0,300\n2,1,50\n4,0,300\n4,1,50\n"


class FakeClock:
    """Starts anywhere and moves when told."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    """Where the test writes its trace."""
    return tmp_path / "trace.csv"


def joules_at(path: Path, times: list[float], gpus: int = 1) -> list[list[float]]:
    """Joules of every GPU at times after construction."""
    clock = FakeClock()
    meter = ReplayMeter(path, gpus, clock)
    result = []
    for t_s in times:
        clock.now_s = 1000.0 + t_s
        result.append([reading.joules for reading in meter.read()])
    return result


def test_watts_are_integrated(trace: Path) -> None:
    """Between rows power lies on a straight line, and joules are its exact integral."""
    trace.write_text(WATTS)
    assert joules_at(trace, [0, 1, 2, 3], gpus=2) == [
        pytest.approx([0, 0]),
        pytest.approx([150, 50]),
        pytest.approx([400, 100]),
        pytest.approx([700, 150]),
    ]


def test_trace_repeats_and_joules_go_on(trace: Path) -> None:
    """After its end the trace starts again and the cumulative joules continue."""
    trace.write_text(WATTS)
    assert joules_at(trace, [4, 5, 8, 41]) == [
        pytest.approx([1000]),
        pytest.approx([1150]),
        pytest.approx([2000]),
        pytest.approx([10150]),
    ]


def test_joules_are_interpolated(trace: Path) -> None:
    """A trace of a counter starts at 0 whatever it read, and runs straight between rows."""
    trace.write_text("t_s,gpu,joules\n0,a,5000\n1,a,5100\n3,a,5500\n")
    assert joules_at(trace, [0, 0.5, 2, 3, 4]) == [
        pytest.approx([0]),
        pytest.approx([50]),
        pytest.approx([300]),
        pytest.approx([500]),
        pytest.approx([600]),
    ]


def test_reading_carries_time_name_and_watts(trace: Path) -> None:
    """Readings are stamped by the clock, named replay-…, and nobody can take them for measured."""
    trace.write_text(WATTS)
    clock = FakeClock()
    meter = ReplayMeter(trace, 2, clock)
    clock.now_s += 1
    first, second = meter.read()
    assert list(meter.gpus) == ["replay-0", "replay-1"]
    assert (first.gpu, first.monotonic_s) == ("replay-0", 1001.0)
    assert first.watts == pytest.approx(200)
    assert second.watts == pytest.approx(50)
    assert (meter.source, meter.quality) == (Source.MODELLED, Quality.MODELLED)


def test_gpu_with_rows_only_in_the_middle(trace: Path) -> None:
    """Power is held beyond a GPU's own rows, joules stand still there; all repeat together."""
    trace.write_text("t_s,gpu,watts\n0,a,10\n4,a,10\n1,b,100\n2,b,100\n")
    assert joules_at(trace, [4, 8], gpus=2) == [pytest.approx([40, 400]), pytest.approx([80, 800])]
    trace.write_text("t_s,gpu,joules\n0,a,0\n4,a,40\n1,b,0\n2,b,100\n")
    assert joules_at(trace, [1, 2, 4, 5.5], gpus=2) == [
        pytest.approx([10, 0]),
        pytest.approx([20, 100]),
        pytest.approx([40, 100]),
        pytest.approx([55, 150]),
    ]


def test_comments_blanks_and_spaces_are_allowed(trace: Path) -> None:
    """A hand-written trace may have comments, blank lines, spaces, CRLF and a byte order mark."""
    trace.write_bytes(
        b"\xef\xbb\xbf# recorded on H100\r\n\r\nt_s, gpu, watts\r\n0, 0, 5\r\n1,0,5\r\n"
    )
    assert joules_at(trace, [1]) == [pytest.approx([5])]


def test_fewer_gpus_are_taken_from_a_larger_trace(trace: Path) -> None:
    """An engine with one GPU plays the first of the trace."""
    trace.write_text(WATTS)
    assert list(ReplayMeter(trace, 1).gpus) == ["replay-0"]


def test_too_few_gpus_is_an_error(trace: Path) -> None:
    """A trace of two GPUs cannot stand for four."""
    trace.write_text(WATTS)
    with pytest.raises(PowerError, match=r"has 2 GPUs \(0, 1\), this engine uses 4"):
        ReplayMeter(trace, 4)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1: the header is ''"),
        ("time,gpu,watts\n", "line 1: the header is 'time,gpu,watts'"),
        ("# a\nt_s;gpu;watts\n", "line 2: the header"),
        ("t_s,gpu,watts\n", "is 0 s long"),
        ("t_s,gpu,watts\n0,0,1\n", "is 0 s long"),
        ("t_s,gpu,watts\n0,0,1\n\n1,0\n", "line 4: '1,0' is not t_s,gpu,watts"),
        ("t_s,gpu,watts\n0,,1\n", "line 2: '0,,1' is not"),
        ("t_s,gpu,watts\n0,0,many\n", "line 2: watts is 'many'"),
        ("t_s,gpu,watts\n0,0,nan\n", "line 2: watts is 'nan'"),
        ("t_s,gpu,watts\n0,0,-1\n", "line 2: watts is '-1'"),
        ("t_s,gpu,watts\n0,0,1e7\n", "from 0 to 1e"),
        ("t_s,gpu,watts\n-1,0,1\n", "line 2: t_s is '-1'"),
        ("t_s,gpu,watts\n1,0,1\n1,0,2\n", "line 3: t_s 1.0 of GPU '0' follows 1.0"),
        ("t_s,gpu,joules\n0,0,9\n1,0,2\n", "line 3: joules of GPU '0' fall from 9.0 to 2.0"),
    ],
)
def test_broken_trace_names_line_and_finding(trace: Path, text: str, message: str) -> None:
    """Every fault of a trace is reported with the line, what was found and what to do."""
    trace.write_text(text)
    with pytest.raises(PowerError) as caught:
        ReplayMeter(trace, 1)
    assert message in str(caught.value)
    assert "; " in str(caught.value)


def test_missing_file_and_wrong_encoding(tmp_path: Path) -> None:
    """A file that is absent, a directory, or no text is a PowerError too."""
    for path in (tmp_path / "absent.csv", tmp_path):
        with pytest.raises(PowerError, match=r"correct the FILE"):
            ReplayMeter(path, 1)
    (tmp_path / "latin").write_bytes(b"t_s,gpu,watts\n0,\xff,1\n")
    with pytest.raises(PowerError, match=r"byte 16 is not UTF-8"):
        ReplayMeter(tmp_path / "latin", 1)


def test_read_after_close_is_an_error(trace: Path) -> None:
    """A closed meter does not read."""
    trace.write_text(WATTS)
    meter = ReplayMeter(trace, 1)
    meter.close()
    with pytest.raises(PowerError, match="after close"):
        meter.read()


cells = st.sampled_from([b"0", b"1", b"2.5", b"-1", b"1e99", b"nan", b"x", b"", b"\xff", b"1e-320"])
lines = st.lists(cells, min_size=1, max_size=4).map(b",".join)
headers = st.sampled_from([b"t_s,gpu,watts", b"t_s,gpu,joules", b""])
near_traces = st.tuples(headers, st.lists(lines, max_size=8)).map(
    lambda parts: b"\n".join([parts[0], *parts[1]])
)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.one_of(st.binary(), near_traces))
def test_any_bytes_play_or_give_a_power_error(trace: Path, content: bytes) -> None:
    """Whatever is in the file, it plays or is refused by a PowerError."""
    trace.write_bytes(content)
    try:
        meter = ReplayMeter(trace, 1)
    except PowerError:
        return
    assert len(meter.read()) == 1


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_a_damaged_trace_plays_or_says_where_it_is_broken(trace: Path, data: st.DataObject) -> None:
    """Bytes cut out, doubled or replaced: a refusal names the file, and joules never fall."""
    content = bytearray(WATTS.encode())
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(content) - 1))
        until = data.draw(st.integers(at, min(at + 6, len(content))))
        content[at:until] = data.draw(st.binary(max_size=3) | st.sampled_from([b"\n", b"1e9"]))
        if not content:
            break
    trace.write_bytes(content)
    try:
        [[first], [last]] = joules_at(trace, [0.5, 1e6])
    except PowerError as error:
        refusal = str(error)
    else:
        assert 0 <= first <= last < math.inf
        return
    assert str(trace) in refusal


def test_rounding_at_a_repeat_never_takes_joules_back(trace: Path) -> None:
    """Just before this trace repeats, rounding alone would show more joules than just after."""
    trace.write_text("t_s,gpu,watts\n0.2,0,236.2\n0.5,0,233.4\n3.5,0,25.8\n")
    clock = FakeClock()
    clock.now_s = 0.0
    meter = ReplayMeter(trace, 1, clock)
    clock.now_s = math.nextafter(3.5, 0)
    [before] = meter.read()
    clock.now_s = 3.5
    [after] = meter.read()
    assert after.joules >= before.joules


numbers = st.floats(0, 1e6)
steps = st.floats(1e-3, 1e3)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.tuples(steps, numbers), min_size=2, max_size=6),
    st.lists(st.floats(0, 1e4), min_size=2, max_size=30),
    st.booleans(),
)
def test_joules_never_fall(
    trace: Path, rows: list[tuple[float, float]], times: list[float], counter: bool
) -> None:
    """Cumulative joules are monotone within a trace and across its repeats."""
    t_s = joules = 0.0
    text = ["t_s,gpu,joules" if counter else "t_s,gpu,watts"]
    for step_s, value in rows:
        t_s, joules = t_s + step_s, joules + value
        text.append(f"{t_s!r},0,{joules if counter else value!r}")
    trace.write_text("\n".join(text))
    edges = [t_s, 2 * t_s, 3 * t_s]
    shown = [joules for [joules] in joules_at(trace, sorted([*times, *edges]))]
    assert shown == sorted(shown)
