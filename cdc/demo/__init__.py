"""The demonstration: a PostgreSQL of its own, a small shop with live traffic, and the service on it."""

from cdc.demo.show import run

__all__ = ["run"]
