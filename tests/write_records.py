"""Write records until all are there (arguments: directory, count); a test of `core.records` kills this repeatedly."""

import sys
from pathlib import Path

from tiny_groundings import grounding

from core.records import RunStore

directory, count = Path(sys.argv[1]), int(sys.argv[2])
store = RunStore(directory, {"count": count})
done = store.done()
with (directory / "log.txt").open("a") as log:
    for number in range(count):
        if str(number) in done:
            continue
        log.write(f"start {number}\n")
        log.flush()
        if number % 10 == 9:
            store.write_error(str(number), f"image {number} is broken")
        else:
            store.write(str(number), grounding(number))
        log.write(f"end {number}\n")
        log.flush()
