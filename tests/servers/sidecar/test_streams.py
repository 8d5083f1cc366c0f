"""As many streams at once as a big GPU batches; tests/comparisons/streams.py times them."""

from pathlib import Path

from tests.comparisons.streams import compare


def test_each_of_800_streams_is_answered(tmp_path: Path) -> None:
    """Each takes two open files of the proxy; it does not stop at the usual 1024."""
    (alone,), (through,) = compare(tmp_path, streams=800, tokens=5, turns=1)
    assert (alone.whole, through.whole) == (800, 800)
