"""The bounded pool: lanes, timeouts, drain. Runs callbacks; knows nothing of sources or state."""

from cdc.workers.lane import Failed, Lane, Work
from cdc.workers.pool import Bounds, Pool

__all__ = ["Bounds", "Failed", "Lane", "Pool", "Work"]
