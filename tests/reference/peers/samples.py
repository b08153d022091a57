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


def reports_parser():
    """The options of whole reports, as `medfleet bench backlog` has them."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--jobs", type=int, default=32, help="reports that are asked for at once")
    parser.add_argument("--tokens", type=int, default=150, help="tokens of each report, whatever the model would end at")
    parser.add_argument("--slots", type=int, default=16, help="reports that are written side by side at most")
    parser.add_argument("--prompt", type=int, default=340, help="tokens of the prompt, its image's among them")
    parser.add_argument("--before", type=int, default=17, help="tokens in front of the image's")
    parser.add_argument("--repeat", type=int, default=3, help="reports one after the other")
    parser.add_argument("--seconds", type=float, default=600, help="no other single report is begun after so long")
    return parser


def median(values):
    """As `medfleet bench model` has it: the nearest rank."""
    return sorted(values)[(len(values) - 1) // 2] * 1000


class Samples:
    def __init__(self, options, **about):
        self.options, self.about, self.work, self.jobs = options, about, {}, {}

    def measure_reports(self, write):
        """Reports one after the other, then all at once. `write` writes so many at once."""
        jobs, tokens = self.options.jobs, self.options.tokens
        self.measure(f"report alone, {tokens} tokens", lambda: write(1), self.options.repeat)
        queued = f"{jobs} reports queued, {tokens} tokens"
        self.jobs[queued] = jobs
        self.measure(queued, lambda: write(jobs), 1, warm=0)

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
                "jobs": self.jobs.get(name),
                "runs": len(times),
                "clock": {"median_ms": median([clock for clock, _ in times])},
                "processor": {"median_ms": median([processor for _, processor in times])},
            }
            for name, times in self.work.items()
        ]
        print(json.dumps({**self.about, "work": work}), flush=True)
