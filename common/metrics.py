"""Counters and gauges in the text format that Prometheus reads, version 0.0.4."""

from collections.abc import Iterable, Mapping
from typing import Literal

from aiohttp import web
from msgspec import Struct

from common.announcer import Announcer
from common.instrument import Instrument

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

Labels = Mapping[str, str]


class Metric(Struct, frozen=True):
    """One name with its values; counters end in `_total`."""

    name: str
    kind: Literal["counter", "gauge"]
    meaning: str
    values: list[tuple[Labels, float]]


def counts(name: str, meaning: str, label: str, counted: Mapping[str, int], **labels: str) -> Metric:
    """A counter with one value for each key of *counted*."""
    values: list[tuple[Labels, float]] = [({**labels, label: key}, counted[key]) for key in sorted(counted)]
    return Metric(name, "counter", meaning, values)


def gauge(name: str, meaning: str, value: float, **labels: str) -> Metric:
    return Metric(name, "gauge", meaning, [(labels, value)])


def exposition(metrics: Iterable[Metric]) -> web.Response:
    """The answer to a scrape."""
    lines: list[str] = []
    for metric in metrics:
        lines += [f"# HELP {metric.name} {metric.meaning}", f"# TYPE {metric.name} {metric.kind}"]
        lines += [f"{metric.name}{_braced(labels)} {_number(value)}" for labels, value in metric.values]
    body = "\n".join(lines) + "\n"
    return web.Response(body=body.encode("utf-8"), headers={"Content-Type": CONTENT_TYPE})


def _braced(labels: Labels) -> str:
    if not labels:
        return ""
    return "{" + ",".join(f'{key}="{_escaped(text)}"' for key, text in labels.items()) + "}"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else repr(value)


def stream_metrics(announcer: Announcer, instrument: Instrument | None) -> list[Metric]:
    """What either daemon tells of the stream it records."""
    recorder = announcer.recorder
    metrics = [
        counts("qsensor_events_total", "What happened, by kind, since the start.", "kind", announcer.events),
        gauge("qsensor_recording", "1 while a recording is open.", recorder is not None),
    ]
    if instrument is not None:
        health = instrument.health()
        metrics += [
            gauge("qsensor_sensor_connected", "1 while the sensor is heard.", health.connected),
            counts("qsensor_sensor_total", "What the driver met, by kind.", "kind", health.counters),
        ]
    if recorder is not None:
        metrics += [
            gauge("qsensor_rows", "Rows of the open recording that reached the OS.", recorder.rows),
            gauge("qsensor_last_seq", "Highest number that reached the OS.", recorder.last_seq),
            gauge("qsensor_durable_seq", "Highest number that is on the disk.", recorder.durable_seq),
            gauge("qsensor_rows_waiting", "Rows in memory that the disk has not taken.", recorder.waiting),
            gauge("qsensor_disk_trouble", "1 while the disk refuses.", bool(recorder.trouble)),
            gauge("qsensor_readings_dropped", "Readings of this recording lost in memory.", recorder.dropped),
        ]
    return metrics
