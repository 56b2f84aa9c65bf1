"""Damaged files are read or refused by an error of microseg: no crash, no hang, no foreign exception."""

import pytest

from tests.fuzz.campaign import fuzz, table
from tests.fuzz.readers import READERS


@pytest.mark.parametrize("reader", READERS)
def test_sound_files_are_accepted(reader):
    found = fuzz(1, readers=(reader,))
    assert found[reader].counts["accepted"] == 1


@pytest.mark.parametrize("reader", READERS)
def test_damaged_files_are_read_or_refused(reader):
    found = fuzz(20, readers=(reader,))
    assert not found[reader].faults


@pytest.mark.long
@pytest.mark.timeout(7200)
def test_a_hundred_thousand_damaged_files_are_read_or_refused():
    found = fuzz(100_000, start=1000)
    print(table(found))
    assert not [fault for outcome in found.values() for fault in outcome.faults]
