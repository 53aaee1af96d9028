"""Lab Streaming Layer with a sample for each reading, as its users stream slow sensors."""

import importlib
import time
from typing import Any

NAME = "qsensor-bench"
LATE_S = 2.0  # nothing comes any more


def push(count: str) -> None:
    """So many samples of four numbers, as fast as they go, to whoever is there."""
    lsl: Any = importlib.import_module("pylsl")
    outlet = lsl.StreamOutlet(lsl.StreamInfo(NAME, "light", 4, 0, lsl.cf_double64, NAME))
    while not outlet.have_consumers():
        time.sleep(0.05)
    time.sleep(0.5)
    for number in range(int(count)):
        outlet.push_sample((float(number), 0.012345, 25.19, 7.494))
    time.sleep(2 * LATE_S)


def pull(count: str) -> None:
    """How many came, and s from the first to the last."""
    lsl: Any = importlib.import_module("pylsl")
    [found] = lsl.resolve_byprop("name", NAME, timeout=10)
    inlet = lsl.StreamInlet(found)
    inlet.open_stream()
    sample, _ = inlet.pull_sample(timeout=10)
    seen = int(sample is not None)
    begun_s = ended_s = time.perf_counter()
    while seen < int(count):
        sample, _ = inlet.pull_sample(timeout=LATE_S)
        if sample is None:
            break
        seen, ended_s = seen + 1, time.perf_counter()
    print(seen, ended_s - begun_s, flush=True)
