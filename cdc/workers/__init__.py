"""The bounded pool: lanes, timeouts, retries, parking, drain. Runs callbacks; knows nothing of sources or state."""

from cdc.workers.pool import Bounds, Parted, Pool, PoolListener

__all__ = ["Bounds", "Parted", "Pool", "PoolListener"]
