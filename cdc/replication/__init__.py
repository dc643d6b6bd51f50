"""The replication connection: the only package that knows it. SQL and commands, then the COPY stream."""

from cdc.replication.connection import ReplicationConnection, SystemIdentity
from cdc.replication.stream import ReplicationStream

__all__ = ["ReplicationConnection", "ReplicationStream", "SystemIdentity"]
