"""A Q-Series on a pseudo-terminal that a driver cannot tell from the real one, faults included."""

from common.simulator.device import Simulator

__all__ = ["Simulator"]
