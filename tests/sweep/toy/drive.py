"""A driver process that tests may kill: ``drive.py run SWEEP RESULTS k=v ...`` or ``drive.py resume RUN``."""

import sys
from pathlib import Path

import toy  # noqa: F401  registers the toy workload

from mist.sweep.study import resume, run

if __name__ == "__main__":
    verb, what, *rest = sys.argv[1:]
    if verb == "resume":
        sys.exit(resume(Path(what), judge="toy.judge", compose="toy.compose"))
    sys.exit(run(what, rest[1:], judge="toy.judge", compose="toy.compose", results=Path(rest[0])))
