"""The log: what was acknowledged comes back; a torn end is cut, damage is refused."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rec.retrieval.errors import LogError
from rec.retrieval.log import ChangeLog

ABOUT: dict[str, object] = {"dimension": 4, "encoder": "e"}


def filled(folder: Path, payloads: list[bytes], roll_at: int = -1) -> None:
    log = ChangeLog(folder, ABOUT)
    for place, payload in enumerate(payloads):
        if place == roll_at:
            log.roll()
        assert log.append(payload) == place + 1
    log.close()


def held(folder: Path, after: int | None = None) -> list[tuple[int, bytes]]:
    log = ChangeLog(folder, ABOUT)
    records = [(record.number, record.payload) for record in log.replay(after)]
    log.close()
    return records


PAYLOADS = [b"one", b"", b"\0" * 50, b"four" * 1000]


@pytest.mark.parametrize("roll_at", [-1, 0, 2])
def test_comes_back_in_order_and_goes_on(tmp_path: Path, roll_at: int) -> None:
    filled(tmp_path, PAYLOADS, roll_at)
    assert held(tmp_path) == list(enumerate(PAYLOADS, 1))
    assert held(tmp_path, 2) == [(3, PAYLOADS[2]), (4, PAYLOADS[3])]
    assert held(tmp_path, 4) == []
    log = ChangeLog(tmp_path, ABOUT)
    assert log.append(b"five") == 5
    log.close()
    assert held(tmp_path, 4) == [(5, b"five")]


@settings(max_examples=60, deadline=None)
@given(cut=st.integers(0, 400))
def test_cut_anywhere_keeps_the_whole_records(
    tmp_path_factory: pytest.TempPathFactory, cut: int
) -> None:
    folder = tmp_path_factory.mktemp("log")
    payloads = [bytes([n]) * (10 * n) for n in range(1, 6)]
    filled(folder, payloads)
    (path,) = folder.glob("*.log")
    data = path.read_bytes()
    size = max(0, len(data) - cut)
    path.write_bytes(data[:size])
    records = held(folder)
    assert records == list(enumerate(payloads, 1))[: len(records)]
    # a record is lost only where a byte of it was
    kept = len(data) - sum(20 + len(payload) for payload in payloads[len(records) :])
    assert size >= kept or not records
    if len(records) < len(payloads):
        assert size < kept + 20 + len(payloads[len(records)])
    log = ChangeLog(folder, ABOUT)
    assert log.torn_bytes == 0  # it was cut off before
    assert log.append(b"next") == len(records) + 1
    log.close()


def test_a_torn_end_is_dropped_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    filled(tmp_path, PAYLOADS)
    (path,) = tmp_path.glob("*.log")
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:-100])
    assert held(tmp_path) == list(enumerate(PAYLOADS[:3], 1))
    (warning,) = caplog.messages
    end = size - 20 - len(PAYLOADS[3])
    assert warning.startswith(f"{path}: dropped {size - 100 - end} bytes after byte {end}: ")
    assert len(held(tmp_path)) == len(caplog.messages) + 2  # nothing more to drop


@pytest.mark.parametrize("left", [0, 10])
def test_a_known_log_that_is_empty_has_lost_its_changes(tmp_path: Path, left: int) -> None:
    """It becomes known once its first record is on disk."""
    filled(tmp_path, PAYLOADS)
    (path,) = tmp_path.glob("*.log")
    path.write_bytes(path.read_bytes()[:left])
    with pytest.raises(
        LogError, match=f"^{path}: an empty log, the changes of this index are in log abc"
    ):
        ChangeLog(tmp_path, ABOUT, identity="abc")


def test_unwritten_space_at_the_end_is_torn(tmp_path: Path) -> None:
    filled(tmp_path, PAYLOADS)
    (path,) = tmp_path.glob("*.log")
    with path.open("ab") as stream:
        stream.write(b"\0" * 4096)
    log = ChangeLog(tmp_path, ABOUT)
    assert (log.last, log.torn_bytes) == (4, 4096)
    log.close()


@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_a_flipped_bit_is_refused_by_file_and_offset(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("log")
    filled(folder, PAYLOADS[:3])
    (path,) = folder.glob("*.log")
    content = bytearray(path.read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    content[place] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(content)
    with pytest.raises(LogError, match=rf"{path.name}, byte \d+: a record is damaged"):
        ChangeLog(folder, ABOUT)


def test_another_models_log_a_missing_segment_and_a_second_writer(tmp_path: Path) -> None:
    filled(tmp_path, PAYLOADS, roll_at=2)
    with pytest.raises(LogError, match="the index is"):
        ChangeLog(tmp_path, {**ABOUT, "encoder": "f"})
    log = ChangeLog(tmp_path, ABOUT)
    with pytest.raises(LogError, match="another process writes"):
        ChangeLog(tmp_path, ABOUT)
    with pytest.raises(LogError, match="holds changes 1 to 4, wanted those after 9"):
        list(log.replay(9))
    log.close()
    first, _ = sorted(tmp_path.glob("*.log"))
    first.rename(tmp_path / "aside")
    log = ChangeLog(tmp_path, ABOUT)
    with pytest.raises(LogError, match="holds changes 3 to 4, wanted those after 0"):
        list(log.replay(0))
    log.close()


def test_forgets_whole_segments_only(tmp_path: Path) -> None:
    filled(tmp_path, PAYLOADS, roll_at=2)
    log = ChangeLog(tmp_path, ABOUT)
    log.forget(1)
    assert len(list(tmp_path.glob("*.log"))) == 2
    assert (log.first_kept(1), log.first_kept(2)) == (1, 3)
    assert [log.segment_of(n).name[-5:] for n in (2, 3)] == ["1.log", "3.log"]
    log.forget(2)
    assert [record.number for record in log.replay(2)] == [3, 4]
    with pytest.raises(LogError, match=r"holds changes 3 to 4.*--log-seq"):
        list(log.replay(None))
    log.roll()
    log.roll()  # nothing new: no further segment
    log.forget(4)
    assert len(list(tmp_path.glob("*.log"))) == 1
    log.close()
    assert held(tmp_path, 4) == []
    log = ChangeLog(tmp_path / "new", ABOUT, start=7)
    assert log.append(b"x") == 8
    log.close()


def test_full_disk_leaves_the_log_as_it_was(tmp_path: Path) -> None:
    log = ChangeLog(tmp_path, ABOUT)
    log.append(b"before")
    (path,) = tmp_path.glob("*.log")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 100, limits[1]))
    try:
        with pytest.raises(LogError, match="cannot be written"):
            log.append(b"x" * 1000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert log.append(b"after") == 2
    log.close()
    assert held(tmp_path) == [(1, b"before"), (2, b"after")]
