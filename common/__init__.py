"""What both daemons share: records, clock, sensor, recording, bus, lifecycle."""

VERSION = "0.1.0"
