"""Draw worlds, serve them, divide their joules by every policy, and compare with the truth."""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

from tqdm import tqdm

from .judging import Figures, judged
from .playing import Run, simulate
from .ranges import CONCURRENCIES, SIMULATED_S, draw
from .report import markdown, save

OUTPUT = Path(__file__).with_name("results")


def judge(
    seeds: Sequence[int], concurrencies: Sequence[int], seconds: float
) -> list[list[Figures]]:
    """All figures of every seed; its meter lives through the concurrencies in their order."""
    with tqdm(total=len(seeds) * len(concurrencies), desc="runs", unit="run") as bar:

        def lives(seed: int) -> Iterator[Run]:
            for concurrency in concurrencies:
                yield simulate(draw(seed), concurrency, seconds)
                bar.update()

        return [list(judged(lives(seed))) for seed in seeds]


def main(arguments: Sequence[str] | None = None) -> None:
    """Judge, print and save."""
    parser = argparse.ArgumentParser(prog="python -m tests.fairness", description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="first of the draws (default: 0)")
    parser.add_argument("--draws", type=int, default=20, help="how many (default: 20)")
    parser.add_argument("--concurrency", type=int, nargs="+", default=CONCURRENCIES)
    parser.add_argument("--seconds", type=float, default=SIMULATED_S, help="simulated, of each run")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="folder for the results")
    options = parser.parse_args(arguments)
    seeds = range(options.seed, options.seed + options.draws)
    draws = judge(seeds, options.concurrency, options.seconds)
    save(draws, options.output)
    print(markdown(draws))


if __name__ == "__main__":
    main()
