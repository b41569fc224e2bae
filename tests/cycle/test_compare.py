from pathlib import Path

import pytest

from cahqp.cycle.compare import lines
from cahqp.errors import ConfigError
from cahqp.files import write_json


def cycle(folder: Path, source: float, adapted: float) -> Path:
    figures = {"teacher-source": source, "teacher-adapted": adapted}
    models = {name: {"target-test": {"ap50": value}} for name, value in figures.items()}
    write_json(folder / "evaluate" / "metrics.json", {"models": models})
    return folder


def test_mean_spread_and_gain(tmp_path: Path) -> None:
    table = lines([cycle(tmp_path / "a", 0.10, 0.20), cycle(tmp_path / "b", 0.20, 0.34)])
    gain = next(line for line in table if line.startswith("gain of teacher, adapted"))
    assert gain.split()[-4:] == ["12.0", "2.8", "10.0", "14.0"]


def test_one_run_is_no_comparison(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="two or more"):
        lines([cycle(tmp_path / "a", 0.1, 0.2)])


def test_runs_without_a_model_in_common_are_refused(tmp_path: Path) -> None:
    other = tmp_path / "b"
    write_json(other / "evaluate" / "metrics.json", {"models": {}})
    with pytest.raises(ConfigError, match="no model on the same frames"):
        lines([cycle(tmp_path / "a", 0.1, 0.2), other])


def test_an_arm_that_one_run_lacks_is_left_out_and_named(tmp_path: Path) -> None:
    one, other = cycle(tmp_path / "a", 0.1, 0.2), tmp_path / "b"
    write_json(other / "evaluate" / "metrics.json", {"models": {"teacher-source": {"target-test": {"ap50": 0.3}}}})
    table = lines([one, other])
    assert [line.split(",")[0] for line in table[1:-1]] == ["teacher"]
    assert table[-1] == "Not in all runs, and omitted: teacher, adapted."
