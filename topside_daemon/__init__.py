"""The daemon on deck: mirrors the vehicle, records the surface sensor, runs sessions, fuses."""
