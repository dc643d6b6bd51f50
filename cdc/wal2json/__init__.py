"""wal2json's output (format-version 2, type OIDs) → messages. Pure: no I/O, no clock.

One JSON object per message. Its syntax is checked as a whole, its head is read, and its row stays the plugin's text
until somebody reads it: nine tenths of a message are its row, and most rows are read by few callbacks or none. Where
callbacks do read, rows are parsed with their heads. Two traps of the plugin are handled here: wal2json 2.5 writes
numeric as a bare JSON number, which a float cannot hold, so that numbers with a fraction are read as their literals;
and the payload is in the server's encoding, never converted.
"""

from cdc.wal2json.change import SourceCatalog, Wal2JsonChange
from cdc.wal2json.decoder import OPTIONS, SAMPLE_BURSTS, Decoder

__all__ = ["OPTIONS", "SAMPLE_BURSTS", "Decoder", "SourceCatalog", "Wal2JsonChange"]
