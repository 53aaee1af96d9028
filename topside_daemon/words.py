"""Answers of the daemon as lines for people; scripts take `--json`."""

from typing import Any


def session_text(session: dict[str, Any]) -> str:
    """Where a session stands, and what became of it."""
    lines = [f"session   {session['mission']}: {session['state']}", f"folder    {session['folder']}"]
    lines.append(f"in-water  {_record(session, 'inwater')}, missing {session['inwater_missing']}")
    lines.append(f"surface   {_record(session, 'surface')}")
    if session["surface_storage"]:
        lines.append(
            f"storage   the topside's {_disk(session['surface_storage'])}; readings wait in memory here"
        )
    lines += _events(session)
    report = session["report"]
    if report is not None:
        lines.append(f"fused     {report['rows']} rows, {report['paired']} pairs, {report['gaps']} gaps")
        worth = "so far, as fused" if session["state"] == "incomplete" else "final, as fused"
        lines += [
            f"clock     offset {segment['offset_ns'] / 1e6:.3f} ± {segment['offset_sd_ns'] / 1e6:.3f} ms, "
            f"drift {segment['drift_ppm']:.2f} ± {segment['drift_sd_ppm']:.2f} ppm ({worth})"
            for segment in report["clock"]
        ]
        lines += [
            f"clock     {seed['rung']}, quality {seed['quality']}: {seed['reason']} ({worth})"
            for seed in report.get("seeds", [])
        ]
    if session["detail"]:
        lines.append(f"note      {session['detail']}")
    return "\n".join(lines)


def _record(session: dict[str, Any], role: str) -> str:
    readings, durable = session[f"{role}_seq"] + 1, session[f"{role}_durable_seq"] + 1
    return f"{readings} readings, {durable} of them durable"


def _disk(storage: str) -> str:
    """What is wrong with a disk, to go behind the word whose disk it is."""
    return storage if storage.startswith("disk") else f"disk: {storage}"


def _events(session: dict[str, Any]) -> list[str]:
    streams = session.get("streams", {})
    told = {
        "events    ": session["events"],
        "in-water events  ": streams.get("inwater"),
        "surface events  ": streams.get("surface"),
    }
    return [f"{label}{counted(events)}" for label, events in told.items() if events]


def counted(events: dict[str, int]) -> str:
    """How often what happened, the most frequent first."""
    by_count = sorted(events.items(), key=lambda one: (-one[1], one[0]))
    return ", ".join(kind.replace("_", " ") + (f" {n}" if n > 1 else "") for kind, n in by_count)


def status_text(status: dict[str, Any]) -> str:
    """Where everything stands now."""
    session, surface, inwater, pair = (status[key] for key in ("session", "surface", "inwater", "pair"))
    lines = [session_text(session) if session else "session   none: start one with `start`"]
    lines += [f"also unfinished  {_other(one)}" for one in status.get("unfinished", [])]
    url, bus = status["pi"]["url"] or "none", status["pi"]["bus"]
    lines.append(f"Pi        {bus if url in bus else f'{url}: {bus}'}")
    lines += _version(status["pi"].get("version"), status.get("version", ""))
    lines.append(f"in-water  {_sensor(inwater, status['inwater_value'])}")
    lines += _storage_on_pi(inwater)
    lines.append(f"surface   {_sensor(surface, status['surface_value'])}")
    if pair and pair["percent_of_surface"] is not None:
        values = f"{pair['inwater_value']} / {pair['surface_value']}"
        lines.append(f"ratio     {pair['percent_of_surface']:.2f} % of surface ({values})")
    clock = status["clock"]
    if clock["offset_ms"] is not None:
        lines.append(
            f"clock     offset {clock['offset_ms']:.3f} ± {clock['offset_sd_ms']:.3f} ms, "
            f"drift {clock['drift_ppm']:.2f} ± {clock['drift_sd_ppm']:.2f} ppm, "
            f"{clock['bursts']} comparisons (live, provisional)"
        )
    return "\n".join(lines)


def _other(session: dict[str, Any]) -> str:
    return ": ".join(session[key] for key in ("folder", "state", "detail") if session[key])


def _version(pi: dict[str, Any] | None, topside: str) -> list[str]:
    if pi is None:
        return []
    said = f"version   Pi {pi['pi']}, topside {topside}: {pi['state']}"
    return [f"{said}: {pi['detail']}" if pi["detail"] else said]


def _storage_on_pi(inwater: dict[str, Any] | None) -> list[str]:
    lines = []
    if inwater and inwater["storage"]:
        lines.append(f"storage   the Pi's {_disk(inwater['storage'])}; readings wait in memory there")
    if inwater and inwater["dropped"]:
        lines.append(
            f"dropped   {inwater['dropped']} readings, on the Pi: its disk did not take them in time"
        )
    return lines


def _sensor(sensor: dict[str, Any] | None, value: str | None) -> str:
    if sensor is None:
        return "unknown"
    said = f"{sensor['state']}, {value or 'no value'}"
    return f"{said}: {sensor['detail']}" if sensor["detail"] else said
