"""What the service answers over HTTP: metrics, health, status, and the page that shows it.

Owns sockets, requests and who may ask for what; what is said there others know. A client can cost the stream
nothing: connections, heads, bodies and time are bounded, and nothing waits for a slow reader.
"""

from cdc.http.server import HttpServer

__all__ = ["HttpServer"]
