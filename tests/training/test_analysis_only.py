from cahqp.__main__ import main
from cahqp.runs.manifest import read_manifest


def test_a_model_retrained_on_repaired_labels_is_marked_and_not_exported(
    arguments, recordings, student, tmp_path, capsys
):
    given = [f"--labels={recordings['night']}", f"--ground-truth={recordings['night']}", "--fix=box"]
    assert main(["repair-labels", *given, f"--output={tmp_path / 'repaired'}"]) == 0
    retrain = arguments("retrain", pseudo=[str(tmp_path / "repaired" / "labels.json")])
    given = [f"--model.weights={student}", "--trainer.max_epochs=1", f"--output={tmp_path / 'retrained'}"]
    assert main([*retrain, *given]) == 0
    assert read_manifest(tmp_path / "retrained")["metrics"]["analysis_only"] is True
    model = tmp_path / "retrained" / "model.safetensors"
    assert main(["export", f"--weights={model}", f"--output={tmp_path / 'package'}"]) == 1
    assert "for analysis only" in capsys.readouterr().err
