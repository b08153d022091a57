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
    return parser


class Samples:
    def __init__(self):
        self.work = {}

    def measure(self, name, work, repeat, warm=1):
        """Does the work some times; the first ones are not noted."""
        for turn in range(warm + repeat):
            clock, processor = time.perf_counter(), time.process_time()
            work()
            clock, processor = time.perf_counter() - clock, time.process_time() - processor
            if turn >= warm:
                self.work.setdefault(name, []).append((clock, processor))

    def show(self, **about):
        def median(values):
            return sorted(values)[len(values) // 2] * 1000

        work = [
            {"work": name, "clock": {"median_ms": median([c for c, _ in times])}, "processor": {"median_ms": median([p for _, p in times])}}
            for name, times in self.work.items()
        ]
        print(json.dumps({**about, "work": work}))
