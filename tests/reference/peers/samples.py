"""Times of one kind of work, by the clock and by the processor, as `medfleet bench model --json` has them."""

import argparse
import json
import time


def options_parser():
    """The options that every peer has, as `medfleet bench model` has them."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--batch", type=lambda text: [int(count) for count in text.split(",")], default=[1, 4, 16])
    for name, value in dict(prompt=300, begin=40, steps=16, repeat=3).items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--seconds", type=float, default=120, help="no kind of work is begun again after so long")
    return parser


def median(values):
    """As `medfleet bench model` has it: the nearest rank."""
    return sorted(values)[(len(values) - 1) // 2] * 1000


class Samples:
    def __init__(self, options, **about):
        self.options, self.about, self.work = options, about, {}

    def measure(self, name, work, repeat, warm=1):
        """Does the work some times; the first ones are not noted. Prints all that was measured until now as a line, so that
        whoever stops this program has what it did before."""
        begun = time.perf_counter()
        for turn in range(warm + repeat):
            clock, processor = time.perf_counter(), time.process_time()
            work()
            clock, processor = time.perf_counter() - clock, time.process_time() - processor
            if turn >= warm:
                self.work.setdefault(name, []).append((clock, processor))
                if time.perf_counter() - begun > self.options.seconds:
                    break
        work = [
            {
                "work": name,
                "runs": len(times),
                "clock": {"median_ms": median([clock for clock, _ in times])},
                "processor": {"median_ms": median([processor for _, processor in times])},
            }
            for name, times in self.work.items()
        ]
        print(json.dumps({**self.about, "work": work}), flush=True)
