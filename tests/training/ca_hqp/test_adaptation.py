import csv
import json

import cv2
import pytest
import torch
import yaml
from safetensors.torch import load_file

from cahqp.__main__ import main
from cahqp.detectors.model_file import load, read_metadata
from cahqp.errors import ConfigError
from cahqp.training.ca_hqp.module import TeacherAdaptation
from cahqp.training.ca_hqp.settings import AlignmentSettings, PromptSettings

SHORT = "--trainer.max_epochs=1"
ALONE = ["--model.prompt.enabled=false", "--model.alignment.dqfa=0", "--model.alignment.tiafa=0"]


@pytest.fixture(scope="module")
def adapted(arguments, teacher, tmp_path_factory):
    """Adapt with further flags and return the run directory; what was asked for before is not made again."""
    root, known = tmp_path_factory.mktemp("adapted"), {}

    def run(*more, **frames):
        key = json.dumps([more, frames])
        if key not in known:
            known[key] = root / str(len(known))
            given = [f"--model.weights={teacher}", SHORT, f"--output={known[key]}", *more]
            assert main([*arguments("adapt", **frames), *given]) == 0
        return known[key]

    return run


def weights(run):
    return load_file(run / "model.safetensors")


def equal(one, two):
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def test_labels_of_the_target_are_never_read(adapted, night):
    document = json.loads(night.read_text())
    document["annotations"] = [{**a, "bbox": [0, 0, "?", 1]} for a in document["annotations"]]
    night.write_text(json.dumps(document))
    assert equal(weights(adapted()), weights(adapted(target=[str(night)])))


def test_the_pictures_of_the_target_are(adapted):
    assert not equal(weights(adapted()), weights(adapted(target=["day"])))


def test_with_everything_off_it_is_supervised_training(adapted, arguments, teacher, tmp_path):
    off = weights(adapted(*ALONE, "--model.pseudo_labels.weight=0"))
    given = ["--model.detector=null", f"--model.weights={teacher}", SHORT, f"--output={tmp_path / 'run'}"]
    assert main([*arguments("fit"), *given]) == 0
    assert equal(off, weights(tmp_path / "run"))


@pytest.mark.parametrize("flags", [ALONE[:1], ALONE[1:2], ALONE[2:], ["--model.pseudo_labels.weight=0"]])
def test_every_part_changes_what_is_learnt(flags, adapted):
    assert not equal(weights(adapted(*flags)), weights(adapted()))


def test_the_file_tells_its_prompt_and_its_parent(adapted, teacher):
    told = read_metadata(adapted() / "model.safetensors")
    assert told["prompt"]["injection"] == "add"
    assert told["provenance"]["parent"] == read_metadata(teacher)["hash"]


def test_the_accuracy_of_every_discriminator_is_written(adapted):
    with (adapted("--trainer.log_every_n_steps=1") / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    for branch in ("encoder_query", "decoder_query", "instance"):
        for domain in ("source", "target"):
            values = [float(row[f"discriminator/{branch}_{domain}"] or "nan") for row in rows]
            assert any(0 <= value <= 1 for value in values), (branch, domain)


def test_the_prompts_of_the_domains_are_compared(adapted):
    with (adapted("--trainer.log_every_n_steps=1") / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["prompt/between_domains"]]
    apart, length = ([float(row[f"prompt/{name}"]) for row in rows] for name in ("between_domains", "length"))
    assert apart[0] == length[0] == 0  # a new prompt injects nothing
    assert apart[-1] > 0 and 0 < length[-1] < 1


def test_branches_that_only_train_are_not_in_the_file(adapted):
    assert not any("dqfa" in name or "tiafa" in name for name in weights(adapted()))


@pytest.mark.parametrize("injection", ["add", "concat", "cross_attention"])
def test_a_fresh_prompt_changes_no_detection(injection, teacher):
    images = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    module = TeacherAdaptation(teacher, prompt=PromptSettings(enabled=True, injection=injection))
    with torch.no_grad():
        one, two = load(teacher)(images), module.detector.eval()(images)
    assert torch.equal(one.pred_logits, two.pred_logits)
    assert torch.equal(one.pred_boxes, two.pred_boxes)


def test_an_adapted_teacher_is_adapted_on(adapted, arguments, tmp_path):
    again = f"--model.weights={adapted() / 'model.safetensors'}"
    assert main([*arguments("adapt"), again, SHORT, f"--output={tmp_path / 'run'}"]) == 0


def test_other_settings_than_those_of_a_prompt_that_is_there_are_refused(adapted):
    asked = PromptSettings(enabled=True, components=8, injection="concat", control="constant")
    with pytest.raises(ConfigError) as error:
        TeacherAdaptation(adapted() / "model.safetensors", prompt=asked)
    *differ, remedy = str(error.value).splitlines()
    assert [line.split()[0] for line in differ] == ["prompt.components", "prompt.injection", "prompt.control"]
    assert differ[0] == "prompt.components is 8, the teacher's prompt has 4."
    assert "start from a teacher without a prompt" in remedy


def test_switched_off_a_prompt_that_is_there_stays_as_it_is(adapted, arguments, tmp_path, capsys):
    again = adapted() / "model.safetensors"
    given = [f"--model.weights={again}", SHORT, ALONE[0], f"--output={tmp_path / 'run'}"]
    assert main([*arguments("adapt"), *given]) == 0
    assert "carries a prompt: with prompt.enabled: false it stays in use and does not train" in capsys.readouterr().out
    before, after = load_file(again), weights(tmp_path / "run")
    changed = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert "prompt.generator.values" in after and "encoder" in changed and "prompt" not in changed


def test_domain_queries_of_sfa_refuse_a_teacher_whose_encoder_has_prompts(adapted):
    sfa = AlignmentSettings(dqfa=0.1, dqfa_form="sfa")
    with_prompts = adapted("--model.prompt.places=[input, encoder]") / "model.safetensors"
    with pytest.raises(ConfigError, match="which do not see the prompts that the teacher has there"):
        TeacherAdaptation(with_prompts, prompt=PromptSettings(enabled=False), alignment=sfa)


def test_a_prompt_of_another_image_goes_through_a_training(adapted):
    run = adapted("--model.prompt.control=other_image")
    assert weights(run)["prompt.other_weights"].dtype == torch.int32
    assert weights(run)["prompt.other_weights"].any()


@pytest.mark.parametrize("trainable", ["prompts", "prompts+transformer"])
def test_what_is_not_trainable_stays(trainable, adapted, teacher):
    before, after = load_file(teacher), weights(adapted(f"--model.trainable={trainable}"))
    changed = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert changed == (set() if trainable == "prompts" else changed - {"backbone"})
    assert ("encoder" in changed) == (trainable == "prompts+transformer")


def test_the_parts_have_their_own_learning_rate(teacher):
    module = TeacherAdaptation(teacher, alignment=AlignmentSettings(dqfa=0.1, tiafa=0.1, discriminator_factor=3.0))
    assert sorted({group["lr"] for group in module.parameter_groups()}) == pytest.approx([1e-4, 2e-4, 6e-4])


def test_training_prompts_without_vpg_is_refused(adapted, teacher):
    for weights_file in (teacher, adapted() / "model.safetensors"):
        with pytest.raises(ConfigError, match=r"prompt\.enabled"):
            TeacherAdaptation(weights_file, prompt=PromptSettings(enabled=False), trainable="prompts")


def test_the_mean_teacher_differs_in_these_settings_alone(pytestconfig):
    overlay = yaml.safe_load((pytestconfig.rootpath / "configs/overlays/mean_teacher.yaml").read_text())
    expected = {"prompt": {"enabled": False}, "alignment": {"dqfa": 0.0, "tiafa": 0.0}}
    assert overlay == {"model": {"init_args": expected}}


def test_a_curriculum_trains(adapted):
    given = ["--data.curriculum=[0.5,1.0]", "--data.workers=1", "--model.pseudo_labels.weight_by_score=true"]
    assert (adapted(*given) / "model.safetensors").is_file()


def test_a_video_is_adapted_to(adapted, recordings, tmp_path):
    pictures = sorted(recordings["night"].parent.glob("images/*/*"))
    height, width = cv2.imread(str(pictures[0])).shape[:2]
    film = cv2.VideoWriter(str(tmp_path / "night.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 5, (width, height))
    for picture in pictures:
        film.write(cv2.imread(str(picture)))
    film.release()
    given = [
        f'--data.target=["{tmp_path}/night.avi"]',
        "--data.restyle=1",
        "--model.pseudo_labels.stationary_weight=0.5",
    ]
    assert (adapted(*given) / "model.safetensors").is_file()
