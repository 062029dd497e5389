"""A driver process that tests may kill: ``drive.py run SWEEP RESULTS k=v ...`` or ``drive.py resume RUN``."""

import signal
import sys
from pathlib import Path

import toy  # noqa: F401  registers the toy workload

from mist.sweep.inputs import World
from mist.sweep.study import resume, run

TOY = World("toy.compose", "toy.canonical", "toy.judge", "toy.bound")

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # even where the tests run in the background
    verb, what, *rest = sys.argv[1:]
    if verb == "resume":
        sys.exit(resume(Path(what), world=TOY))
    sys.exit(run(what, rest[1:], world=TOY, results=Path(rest[0])))
