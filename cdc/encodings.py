"""Which encodings of a database are read: the stream's text comes in the server's encoding, never converted.

Only those of which Python decodes every character as PostgreSQL itself converts it (a test compares them all). Not
EUC_JP, where seven characters differ and Python lacks 189; nor EUC_KR, where Python lacks two and joins jamo.
"""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["CODECS"]

CODECS: Mapping[str, str] = (
    {
        f"LATIN{number}": f"iso8859-{part}"
        for number, part in {1: 1, 2: 2, 3: 3, 4: 4, 5: 9, 6: 10, 7: 13, 8: 14, 9: 15, 10: 16}.items()
    }
    | {f"ISO_8859_{part}": f"iso8859-{part}" for part in (5, 6, 7, 8)}
    | {f"WIN{page}": f"cp{page}" for page in (1250, 1251, 1252, 1253, 1254, 1255, 1256, 1257, 1258, 866, 874)}
    | {"KOI8R": "koi8-r", "KOI8U": "koi8-u", "EUC_CN": "gb2312"}
)
"""Name in PostgreSQL → codec in Python, of all but UTF8."""
