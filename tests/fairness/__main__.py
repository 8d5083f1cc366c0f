"""Draw worlds, serve them, divide their joules by every policy, and compare with the truth."""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

from llm_carbon_meter.progress import progress

from .judging import Figures, judged
from .loads import ALL, PLAIN, Load
from .playing import Run, simulate
from .ranges import KEPT_OUT, KERNEL_DEPLOYMENTS, KERNEL_S, SIMULATED_S, World, draw, draw_kernels
from .report import markdown, save

OUTPUT = Path(__file__).with_name("results")


class Kind(NamedTuple):
    """A kind of worlds."""

    loads: Sequence[Load]
    """That a world serves, if no others are asked for."""
    seconds: float
    """Of each."""


KINDS: Final[Mapping[str, Kind]] = {
    "roofline": Kind(PLAIN, SIMULATED_S),
    "kernels": Kind(ALL, KERNEL_S),
    "kept-out": Kind(ALL, KERNEL_S),
}


def world_of(kind: str, seed: int) -> World:
    """The world of a seed."""
    if kind == "roofline":
        return draw(seed)
    return draw_kernels(seed, KERNEL_DEPLOYMENTS if kind == "kernels" else KEPT_OUT)


def live(kind: str, loads: Sequence[Load], seconds: float, seed: int) -> list[Figures]:
    """All figures of a seed; its meter lives through the loads in their order."""

    def runs() -> Iterator[Run]:
        for load in loads:
            yield simulate(world_of(kind, seed), load, seconds)

    return list(judged(runs()))


def main(arguments: Sequence[str] | None = None) -> None:
    """Judge, print and save."""
    parser = argparse.ArgumentParser(prog="python -m tests.fairness", description=__doc__)
    parser.add_argument(
        "--kind",
        choices=KINDS,
        default="roofline",
        help="GPUs of a smooth roofline, of measured kernels (these need the data folder), or of "
        "the kernels of a GPU that is kept out of all tuning (default: roofline)",
    )
    parser.add_argument("--seed", type=int, default=0, help="first of the draws (default: 0)")
    parser.add_argument("--draws", type=int, default=20, help="how many (default: 20)")
    parser.add_argument("--load", nargs="+", default=None, help="by their names (default: all)")
    parser.add_argument("--seconds", type=float, default=None, help="simulated, of each run")
    parser.add_argument("--jobs", type=int, default=1, help="draws at a time (default: 1)")
    parser.add_argument("--output", type=Path, help="folder for the results")
    options = parser.parse_args(arguments)
    kind = KINDS[options.kind]
    named = {load.name: load for load in kind.loads}
    if unknown := set(options.load or ()) - set(named):
        parser.error(f"no such load: {', '.join(unknown)}; there are {', '.join(named)}")
    loads = [named[name] for name in options.load or named]
    judge = partial(live, options.kind, loads, options.seconds or kind.seconds)
    seeds = range(options.seed, options.seed + options.draws)
    with ProcessPoolExecutor(options.jobs) as pool:
        draws = list(progress(pool.map(judge, seeds), total=len(seeds), desc="draws", unit="draw"))
    save(draws, options.output or OUTPUT / options.kind)
    print(markdown(draws))


if __name__ == "__main__":
    main()
