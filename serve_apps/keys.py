"""API keys: who may ask what, known by hashes alone.

    python -m serve_apps.keys NAME [--role admin] [--rate 50] >> keys.txt

makes a key, shows it once and writes a line for the file of keys, of which the services read

    NAME ROLE SHA256 [REQUESTS_A_SECOND]        # "read" or "admin"; `;` ends a line too

A key is 32 random bytes, so that its hash needs no salt and nobody can guess it.
"""

from __future__ import annotations

import argparse
import hashlib
import hmac
import re
import secrets
import sys
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from rec.config import ConfigError

ROLES = ("read", "admin")  # each may do what the one before it may

_FORM = "expected NAME ROLE SHA256 [REQUESTS_A_SECOND]"
_NAME, _DIGEST = re.compile(r"[\w.@-]{1,64}", re.ASCII), re.compile(r"[0-9a-f]{64}")


class Key(NamedTuple):
    name: str  # what log and metrics call its holder
    role: str
    digest: bytes  # SHA-256
    rate_per_s: float | None = None  # None: as all have it

    def may(self, role: str) -> bool:
        return ROLES.index(self.role) >= ROLES.index(role)


def parse_keys(text: str, place: str) -> list[Key]:
    """The keys of a file's text, which `place` names in messages.

    Raises:
        ConfigError: a line has another form, or two have one name or one hash. What stands there is
            not repeated: it may be a key that somebody pasted.
    """
    found: list[Key] = []
    for number, line in enumerate(re.split(r"[\n;]", text), 1):
        words = line.partition("#")[0].split()
        if words:
            found.append(_parse(words, f"{place}, line {number}"))
    for what, values in (
        ("name", [key.name for key in found]),
        ("hash", [key.digest for key in found]),
    ):
        if len(set(values)) < len(values):
            raise ConfigError(f"{place}: two keys have one {what}")
    return found


def find(keys: Iterable[Key], given: str) -> Key | None:
    """The key that was given, None where it is none of them.

    All are compared, each in constant time: how long it takes tells nothing.
    """
    digest = hashlib.sha256(given.encode("utf-8", "surrogateescape")).digest()
    found = None
    for key in keys:
        if hmac.compare_digest(key.digest, digest):
            found = key
    return found


def new_key(name: str, role: str = "read", rate_per_s: float | None = None) -> tuple[str, str]:
    """A key, and its line for the file."""
    key = secrets.token_urlsafe(32)
    words = [name, role, hashlib.sha256(key.encode()).hexdigest()]
    words += [] if rate_per_s is None else [f"{rate_per_s:g}"]
    _parse(words, "the new key")
    return key, " ".join(words)


def _parse(words: Sequence[str], place: str) -> Key:
    if not 3 <= len(words) <= 4:
        raise ConfigError(f"{place}: {len(words)} words, {_FORM}")
    name, role, digest, *rate = words
    if not _NAME.fullmatch(name):
        raise ConfigError(f"{place}: a NAME has up to 64 letters, digits and . _ @ -")
    if role not in ROLES:
        raise ConfigError(f"{place}: {_FORM}, where ROLE is {' or '.join(ROLES)}")
    if not _DIGEST.fullmatch(digest):
        raise ConfigError(f"{place}: {_FORM}, where SHA256 has 64 of 0-9 and a-f")
    try:
        rate_per_s = float(rate[0]) if rate else None
    except ValueError:
        rate_per_s = 0.0
    if rate_per_s is not None and not 0 < rate_per_s < 1e9:
        raise ConfigError(f"{place}: {_FORM}, where the last is a number above 0")
    return Key(name, role, bytes.fromhex(digest), rate_per_s)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m serve_apps.keys",
        description="Make an API key: the key itself goes to the terminal (stderr), once; the line "
        "with its hash to stdout, for the file that access.keys_file names or the environment "
        "variable RAYCALL_API_KEYS.",
    )
    parser.add_argument("name", help="what log and metrics call its holder")
    parser.add_argument("--role", choices=ROLES, default=ROLES[0])
    parser.add_argument("--rate", type=float, metavar="N", help="requests a second")
    asked = parser.parse_args(argv)
    try:
        key, line = new_key(asked.name, asked.role, asked.rate)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"key of {asked.name}, shown this once: {key}", file=sys.stderr)
    print(line)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
