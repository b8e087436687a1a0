"""Where the time went, thread by thread, as a file that chrome://tracing and ui.perfetto.dev open."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import TextIO

from ..engine.run import Meter


def write_trace(file: TextIO, meters: Sequence[Meter]) -> None:
    """Write the meters' spans as Chrome trace events: one row per thread, times in microseconds from the first span.

    Args:
        file: an open text file.
        meters: made with `keep_spans`; one per merge of this process.
    """
    spans = [span for meter in meters for span in meter.spans]
    process = os.getpid()
    start = min((span.begin_seconds for span in spans), default=0.0)
    threads = {name: number for number, name in enumerate(sorted({span.thread for span in spans}))}
    events: list[dict[str, object]] = [
        {"ph": "M", "name": "process_name", "pid": process, "tid": 0, "args": {"name": "anabranch"}}
    ]
    events += [
        {"ph": "M", "name": "thread_name", "pid": process, "tid": number, "args": {"name": name}}
        for name, number in threads.items()
    ]
    events += [
        {
            "ph": "X",
            "name": span.phase,
            "pid": process,
            "tid": threads[span.thread],
            "ts": round((span.begin_seconds - start) * 1e6, 3),
            "dur": round((span.end_seconds - span.begin_seconds) * 1e6, 3),
            "args": {"bytes": span.bytes},
        }
        for span in spans
    ]
    json.dump({"traceEvents": events, "displayTimeUnit": "ms"}, file)
    file.flush()
