import json

import pytest

from microseg.errors import DataError
from microseg.outputs.record import read_record


@pytest.mark.parametrize("source", [1, None, [], {}, True, 0.5])
def test_a_source_that_is_no_text_is_refused(tmp_path, source):
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"name": "a", "source": source}))
    with pytest.raises(DataError, match="expected the record of a segmentation"):
        read_record(path)
