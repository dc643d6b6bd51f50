"""The bounded pool: lanes, timeouts, retries, parking, drain. Runs callbacks; knows nothing of sources or state."""

from cdc.workers.lane import Lane, Work
from cdc.workers.pool import Bounds, Parted, Pool, PoolListener

__all__ = ["Bounds", "Lane", "Parted", "Pool", "PoolListener", "Work"]
