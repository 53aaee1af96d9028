"""Answers of the daemon as lines for people; scripts take `--json`."""

from typing import Any


def session_text(session: dict[str, Any]) -> str:
    """Where a session stands, and what became of it."""
    lines = [f"session   {session['mission']}: {session['state']}", f"folder    {session['folder']}"]
    lines.append(f"in-water  {_record(session, 'inwater')}, missing {session['inwater_missing']}")
    lines.append(f"surface   {_record(session, 'surface')}")
    if session["surface_storage"]:
        lines.append(f"storage   {session['surface_storage']}: surface readings wait in memory")
    if session["events"]:
        lines.append(f"events    {counted(session['events'])}")
    report = session["report"]
    if report is not None:
        lines.append(f"fused     {report['rows']} rows, {report['paired']} pairs, {report['gaps']} gaps")
        lines += [
            f"clock     offset {segment['offset_ns'] / 1e6:.3f} ± {segment['offset_sd_ns'] / 1e6:.3f} ms, "
            f"drift {segment['drift_ppm']:.2f} ± {segment['drift_sd_ppm']:.2f} ppm"
            for segment in report["clock"]
        ]
    if session["detail"]:
        lines.append(f"note      {session['detail']}")
    return "\n".join(lines)


def counted(events: dict[str, int]) -> str:
    """How often what happened, the most frequent first."""
    by_count = sorted(events.items(), key=lambda one: (-one[1], one[0]))
    return ", ".join(kind.replace("_", " ") + (f" {n}" if n > 1 else "") for kind, n in by_count)


def _record(session: dict[str, Any], role: str) -> str:
    readings, durable = session[f"{role}_seq"] + 1, session[f"{role}_durable_seq"] + 1
    return f"{readings} readings, {durable} of them durable"


def status_text(status: dict[str, Any]) -> str:
    """Where everything stands now."""
    session, surface, inwater, pair = (status[key] for key in ("session", "surface", "inwater", "pair"))
    lines = [session_text(session) if session else "session   none: start one with `start`"]
    url, bus = status["pi"]["url"] or "none", status["pi"]["bus"]
    lines.append(f"Pi        {bus if url in bus else f'{url}: {bus}'}")
    lines.append(f"in-water  {_sensor(inwater, status['inwater_value'])}")
    lines.append(f"surface   {_sensor(surface, status['surface_value'])}")
    if pair and pair["percent_of_surface"] is not None:
        values = f"{pair['inwater_value']} / {pair['surface_value']}"
        lines.append(f"ratio     {pair['percent_of_surface']:.2f} % of surface ({values})")
    clock = status["clock"]
    if clock["offset_ms"] is not None:
        lines.append(
            f"clock     offset {clock['offset_ms']:.3f} ± {clock['offset_sd_ms']:.3f} ms, "
            f"drift {clock['drift_ppm']:.2f} ± {clock['drift_sd_ppm']:.2f} ppm, {clock['bursts']} comparisons"
        )
    return "\n".join(lines)


def _sensor(sensor: dict[str, Any] | None, value: str | None) -> str:
    if sensor is None:
        return "unknown"
    said = f"{sensor['state']}, {value or 'no value'}"
    return f"{said}: {sensor['detail']}" if sensor["detail"] else said
