import pytest

from cahqp.__main__ import main
from cahqp.cli.training import COMMON
from cahqp.cli.training_arguments import join_lists

NAMES = {"train", "curriculum"}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["--data.train", "a.json"], ['--data.train=["a.json"]']),
        (["--data.train=a.json"], ['--data.train=["a.json"]']),
        (["--data.train", "a.json", "b.json", "--seed", "1"], ['--data.train=["a.json", "b.json"]', "--seed", "1"]),
        (["--data.train", "[a.json,", "b.json]"], ["--data.train=[a.json, b.json]"]),
        (["--data.curriculum", "0.5", "1"], ["--data.curriculum=[0.5, 1]"]),
        (["--data.curriculum=null"], ["--data.curriculum=null"]),
        (["--trainer.max_epochs", "3"], ["--trainer.max_epochs", "3"]),
    ],
)
def test_lists_need_no_brackets(given, expected):
    assert join_lists(given, NAMES) == expected


def test_every_option_of_the_short_help_exists(arguments, capsys):
    """Options of the chosen classes are in the parsed config, the others in the full help."""
    assert main(["fit", "--help-all"]) == 0
    full = capsys.readouterr().out
    names = [entry[0].split()[0] for section in ("Run", "Trainer") for entry in COMMON[section]]
    assert [name for name in names if f"{name} " not in full and f"{name}\n" not in full] == []
    keys = ""
    for kind in ("fit", "adapt", "retrain"):
        given = [*arguments(kind), "--print-config"]
        assert main(given if kind == "fit" else [*given, "--model.weights=w.safetensors"]) == 0
        keys += capsys.readouterr().out
    dotted = [entry[0].split()[0].rpartition(".")[2] for section in ("Model", "Data") for entry in COMMON[section]]
    assert [name for name in dotted if f" {name}:" not in keys] == []


def test_one_validation_batch_is_one(arguments, capsys, tmp_path):
    assert main([*arguments("fit"), "--config=configs/overlays/tiny.yaml", "--print-config"]) == 0
    assert "limit_val_batches: 1\n" in capsys.readouterr().out
