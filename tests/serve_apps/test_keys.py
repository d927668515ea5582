"""The file of keys: what is made, read, found and refused."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rec.config import ConfigError
from serve_apps.keys import Key, find, main, new_key, parse_keys


def test_a_new_key_is_found_by_its_line_and_by_no_other() -> None:
    key, line = new_key("batch-job", "admin", 12.5)
    other, other_line = new_key("page")
    text = f"# of May\n\n{line}  # a comment\n{other_line};"
    keys = parse_keys(text, "FILE")
    assert keys[0] == Key("batch-job", "admin", hashlib.sha256(key.encode()).digest(), 12.5)
    assert (keys[1].role, keys[1].rate_per_s) == ("read", None)
    assert find(keys, key) == keys[0]
    assert find(keys, other) == keys[1]
    for wrong in ("", key[:-1], key + "x", line, keys[0].digest.hex(), "é\udcff"):
        assert find(keys, wrong) is None
    assert len(key) >= 43  # 256 bits
    assert key not in text


def test_roles_rise() -> None:
    read, admin = (parse_keys(new_key("a", role)[1], "x")[0] for role in ("read", "admin"))
    assert (read.may("read"), read.may("admin")) == (True, False)
    assert (admin.may("read"), admin.may("admin")) == (True, True)


DIGEST = "0" * 64


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("alice read", "FILE, line 1: 2 words, expected NAME ROLE SHA256"),
        (f"\nalice read {DIGEST} 5 6", "line 2: 5 words"),
        (f"alice owner {DIGEST}", "ROLE is read or admin"),
        (f"al/ice read {DIGEST}", "NAME has up to 64"),
        ("alice read secretsecret", "64 of 0-9 and a-f"),
        (f"alice read {DIGEST} fast", "a number above 0"),
        (f"alice read {DIGEST} 0", "a number above 0"),
        (f"alice read {DIGEST} nan", "a number above 0"),
        (f"a read {DIGEST}\na read {'1' * 64}", "FILE: two keys have one name"),
        (f"a read {DIGEST}; b read {DIGEST}", "FILE: two keys have one hash"),
    ],
)
def test_lines_of_another_form_are_refused_and_not_repeated(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as told:
        parse_keys(text, "FILE")
    assert "secretsecret" not in str(told.value)


@given(text=st.text(max_size=100))
def test_any_text_is_keys_or_refused(text: str) -> None:
    try:
        keys = parse_keys(text, "FILE")
    except ConfigError:
        return
    assert all(len(key.digest) == 32 for key in keys)


def test_the_command_shows_the_key_apart_from_its_line(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["page", "--role", "admin", "--rate", "3"]) == 0
    out, err = capsys.readouterr()
    (key,) = parse_keys(out, "stdout")
    given = err.split()[-1]
    assert find([key], given) == Key("page", "admin", key.digest, 3.0)
    assert given not in out
    assert main(["no name"]) == 1
    assert "NAME has" in capsys.readouterr().err
