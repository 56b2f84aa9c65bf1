from pathlib import Path

import pytest

from benchmarks.regression import Measurement, main, measure, slower


def test_what_takes_a_quarter_longer_is_reported():
    seconds = {
        "slower": [(1.0, 1.3), (1.0, 1.4), (2.0, 2.0)],
        "one outlier": [(1.0, 1.0), (1.0, 9.0), (1.0, 1.0)],
        "faster": [(1.0, 0.5)] * 3,
        "too short to tell": [(0.01, 0.02)] * 3,
    }
    assert slower(seconds, 1.25) == ["slower (1.30)"]


def test_processor_time_of_a_process_or_of_its_own_measurement(tmp_path: Path):
    assert measure(Measurement("own", ("-c", "print('SECONDS', 2.5)")), tmp_path) == 2.5
    (tmp_path / "busy.py").write_text("import time\nwhile time.process_time() < 0.3:\n    pass\n")
    assert 0.3 <= measure(Measurement("all", ("-c", "import busy")), tmp_path) < 3
    with pytest.raises(SystemExit, match="No module named 'absent'"):
        measure(Measurement("none", ("-c", "import absent")), tmp_path)


def test_a_commit_is_compared_with_itself(capsys: pytest.CaptureFixture[str]):
    main(["--base", "HEAD", "--rounds", "1", "--only", "import microseg", "--limit", "100"])
    assert "| import microseg | 0." in capsys.readouterr().out


def test_unknown_names_are_refused(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        main(["--only", "something"])
    assert "unknown something" in capsys.readouterr().err
