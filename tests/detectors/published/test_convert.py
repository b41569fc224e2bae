"""Checkpoints under published names, converted from the command line to an equal detector.

Each checkpoint is a small detector of cahqp written under the published names. Outputs of official DINO and RT-DETR
were also recorded from the published code, see `test_published.py`.
"""

import json
import pickle
import re
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from cahqp.__main__ import main
from cahqp.cycle.init.starting_points import PUBLISHED
from cahqp.detectors.model_file import load
from cahqp.detectors.published.class_mapping import COCO_91, COCO_NAMES

HEADS = [
    (r"^query_position", "transformer.decoder.ref_point_head"),
    (r"^query_content", "transformer.tgt_embed"),
    (r"^proposal_proj", "transformer.enc_output"),
    (r"^proposal_norm", "transformer.enc_output_norm"),
    (r"^decoder_norm", "transformer.decoder.norm"),
    (r"^label_content", "label_enc"),
    (r"^class_heads", "class_embed"),
    (r"^box_heads", "bbox_embed"),
]
OFFICIAL = [
    (r"^backbone\.", "backbone.0."),
    (r"^level_embed", "transformer.level_embed"),
    (r"^(encoder|decoder)\.", r"transformer.\1.layers."),
    (r"(encoder\.layers\.\d+)\.ffn\.norm\.", r"\1.norm2."),
    (r"(decoder\.layers\.\d+)\.ffn\.norm\.", r"\1.norm3."),
    (r"(layers\.\d+)\.norm\.", r"\1.norm1."),
    (r"\.ffn\.", "."),
    (r"\.self_attn\.norm\.", ".norm2."),
    (r"\.self_attn\.attention\.", ".self_attn."),
    (r"^proposal_class", "transformer.enc_out_class_embed"),
    (r"^proposal_box", "transformer.enc_out_bbox_embed"),
    *HEADS,
]
DETREX = [
    (r"^backbone\.body\.conv1", "backbone.stem.conv1"),
    (r"^backbone\.body\.bn1", "backbone.stem.conv1.norm"),
    *[(rf"^backbone\.body\.layer{stage - 1}", f"backbone.res{stage}") for stage in (2, 3, 4, 5)],
    (r"(res\d\.\d+)\.bn(\d)", r"\1.conv\2.norm"),
    (r"downsample\.0", "shortcut"),
    (r"downsample\.1", "shortcut.norm"),
    (r"^input_proj\.([012])\.0", r"neck.convs.\1.conv"),
    (r"^input_proj\.([012])\.1", r"neck.convs.\1.norm"),
    (r"^input_proj\.3\.0", "neck.extra_convs.0.conv"),
    (r"^input_proj\.3\.1", "neck.extra_convs.0.norm"),
    (r"^level_embed", "transformer.level_embeds"),
    (r"^(encoder|decoder)\.", r"transformer.\1.layers."),
    (r"(encoder\.layers\.\d+)\.self_attn", r"\1.attentions.0"),
    (r"(encoder\.layers\.\d+)\.norm", r"\1.norms.0"),
    (r"(encoder\.layers\.\d+)\.ffn\.norm", r"\1.norms.1"),
    (r"(decoder\.layers\.\d+)\.self_attn\.attention", r"\1.attentions.0.attn"),
    (r"(decoder\.layers\.\d+)\.self_attn\.norm", r"\1.norms.0"),
    (r"(decoder\.layers\.\d+)\.cross_attn", r"\1.attentions.1"),
    (r"(decoder\.layers\.\d+)\.norm\b", r"\1.norms.1"),
    (r"(decoder\.layers\.\d+)\.ffn\.norm", r"\1.norms.2"),
    (r"ffn\.linear1", "ffns.0.layers.0.0"),
    (r"ffn\.linear2", "ffns.0.layers.1"),
    (r"^proposal_class", "class_embed.2"),
    (r"^proposal_box", "bbox_embed.2"),
    *HEADS,
]
SECOND = [
    (r"^backbone\.stem\.(\d)", lambda m: f"backbone.conv1.conv1_{int(m[1]) + 1}"),
    (r"^backbone\.stages\.(\d)\.(\d)", r"backbone.res_layers.\1.blocks.\2"),
    (r"branch\.(\d)", lambda m: f"branch2{'abc'[int(m[1])]}"),
    (r"(res_layers\.[123]\.blocks\.0)\.shortcut", r"\1.short.conv"),
    (r"(res_layers\.0\.blocks\.0)\.shortcut", r"\1.short"),
    (r"^encoder\.attention\.attention", "encoder.encoder.0.layers.0.self_attn"),
    (r"^encoder\.attention\.norm", "encoder.encoder.0.layers.0.norm1"),
    (r"^encoder\.ffn\.norm", "encoder.encoder.0.layers.0.norm2"),
    (r"^encoder\.ffn", "encoder.encoder.0.layers.0"),
    (r"^encoder\.(lateral|downsample)", r"encoder.\1_convs"),
    (r"^encoder\.top_down", "encoder.fpn_blocks"),
    (r"^encoder\.bottom_up", "encoder.pan_blocks"),
    (r"blocks\.(\d)\.blocks\.(\d)\.conv1", r"blocks.\1.bottlenecks.\2.conv2"),
    (r"blocks\.(\d)\.blocks\.(\d)\.conv3", r"blocks.\1.bottlenecks.\2.conv1"),
    (r"^decoder\.(\d)", r"decoder.decoder.layers.\1"),
    (r"^decoder_proj", "decoder.input_proj"),
    (r"(decoder\.layers\.\d)\.norm\.", r"\1.norm2."),
    (r"self_attn\.attention", "self_attn"),
    (r"self_attn\.norm", "norm1"),
    (r"ffn\.norm", "norm3"),
    (r"\.ffn\.", "."),
    (r"^label_content", "decoder.denoising_class_embed"),
    (r"^query_position", "decoder.query_pos_head"),
    (r"^proposal_proj", "decoder.enc_output.proj"),
    (r"^proposal_norm", "decoder.enc_output.norm"),
    (r"^proposal_class", "decoder.enc_score_head"),
    (r"^proposal_box", "decoder.enc_bbox_head"),
    (r"^class_heads", "decoder.dec_score_head"),
    (r"^box_heads", "decoder.dec_bbox_head"),
]
NARROW = {"backbone": "resnet18", "backbone_options": {"channels": [8, 16, 16, 32]}, "size": None, "heads": 8}


def under(names, detector):
    """Return a detector's weights under published names."""
    state = {}
    for name, tensor in detector.state_dict().items():
        for pattern, published in names:
            name = re.sub(pattern, published, name)
        state[name] = tensor
    return state


def with_copies(state):
    """Add the heads' second names."""
    heads = {name: tensor for name, tensor in state.items() if name.startswith(("class_embed", "bbox_embed"))}
    return state | {f"transformer.decoder.{name}": tensor for name, tensor in heads.items()}


def official(build, levels, shared):
    """Ids from 0 to 90 with 92 labels; heads are stored once per layer."""
    wide = {"strides": [4, 8, 16, 32][1 - levels :], "levels": levels, "shared_heads": shared}
    detector = build("dino", **{**NARROW, **wide, "classes": [str(i) for i in range(91)]})
    with torch.no_grad():  # outputs without a class have low scores
        for head in [detector.proposal_class, *detector.class_heads]:
            head.bias[[row for row, name in enumerate(COCO_91) if name is None]] = -20.0
    state = under(OFFICIAL, detector)
    if shared:
        state |= {n.replace("embed.0", "embed.1"): t.clone() for n, t in state.items() if re.match(r"\w+_embed\.0", n)}
    return detector, {"model": with_copies(state), "args": Namespace(num_classes=91), "epoch": 11}


def detrex(build):
    """Eighty classes and as many labels."""
    own = {"strides": [8, 16, 32], "levels": 4, "shared_heads": False, "classes": list(COCO_NAMES)}
    own |= {"position_temperature": 10000.0, "position_offset": -0.5}
    detector = build("dino", **{**NARROW, **own})
    state = under(DETREX, detector)
    state["label_enc.weight"] = state["label_enc.weight"][:-1]
    return detector, {"model": with_copies(state)}


def second(build, points=(1, 2, 1), **settings):
    """With the buffers of the second version, and an encoder wider than the decoder, as with 101 layers."""
    own = {"classes": list(COCO_NAMES), "heads": 8, "points": list(points), "encoder_dim": 48, "encoder_ffn_dim": 40}
    detector = build("rtdetr", **{**own, "queries": 300, "size": (96, 96), **settings})
    state = under(SECOND, detector)
    state["decoder.anchors"] = torch.zeros(1, 189, 4)  # of 96x96 pixels: 144 + 36 + 9 cells
    state["decoder.valid_mask"] = torch.ones(1, 189, 1)
    for layer in range(len(detector.decoder)):
        name = f"decoder.decoder.layers.{layer}.cross_attn.num_points_scale"
        state[name] = torch.tensor([1 / n for n in points for _ in range(n)])
    return detector, {"ema": {"module": state, "updates": 7}, "last_epoch": 3}


@pytest.fixture
def converted(tmp_path):
    """Convert a checkpoint from the command line."""

    def run(content, *options):
        torch.save(content, tmp_path / "published.pth")
        assert main(["convert", str(tmp_path / "published.pth"), str(tmp_path / "own.safetensors"), *options]) == 0
        return load(tmp_path / "own.safetensors")

    return run


def outputs(detector, rows=slice(None), size=(96, 96), padded=False):
    torch.manual_seed(3)
    images, mask = torch.rand(2, 3, *size), torch.zeros(2, *size, dtype=torch.bool)
    mask[1, :, size[1] // 2 :] = padded
    with torch.no_grad():
        out = detector(images.masked_fill(mask[:, None], 0), mask)
    return out.pred_logits[..., rows], out.pred_boxes


def equal(one, other):
    return all(torch.allclose(a, b, atol=1e-5, rtol=0) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize(("levels", "shared"), [(4, True), (5, False)])
def test_official_dino(build, converted, levels, shared):
    """Its 91 outputs become COCO's 80 classes, on a padded batch that is not square."""
    original, content = official(build, levels, shared)
    detector = converted(content)
    rows = [row for row, name in enumerate(COCO_91) if name is not None]
    assert equal(outputs(detector, size=(64, 96), padded=True), outputs(original, rows, (64, 96), padded=True))
    assert detector.classes == COCO_NAMES and len(detector.class_heads) == (1 if shared else 2)
    assert (detector.preprocessing.short_side, detector.preprocessing.max_side) == (800, 1333)
    assert torch.equal(detector.label_content.weight[2], original.label_content.weight[3])


def test_dino_of_detrex(build, converted):
    original, content = detrex(build)
    detector = converted(content)
    assert equal(outputs(detector, size=(64, 96), padded=True), outputs(original, size=(64, 96), padded=True))
    assert torch.equal(detector.label_content.weight[:80], original.label_content.weight[:80])


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module._orig_mod.", "model.", "model._orig_mod."])
def test_prefixes_of_wrappers_and_numpy_numbers_are_read(build, converted, prefix):
    _, content = second(build)
    state = {f"{prefix}{name}": tensor for name, tensor in content["ema"]["module"].items()}
    assert converted({"state_dict": state, "epoch": np.int64(3), "best": np.float64(0.5)}).classes == COCO_NAMES


def test_the_second_rtdetr(build, converted):
    original, content = second(build)
    detector = converted(content)
    assert equal(outputs(detector), outputs(original))
    assert detector.preprocessing.size == (96, 96) and detector.settings["points"] == [1, 2, 1]
    assert detector.preprocessing.mean == (0, 0, 0) and detector.provenance["place"] == "ema.module"


def test_the_medium_model_predicts_with_its_third_layer(build, converted):
    medium = {"backbone": "resnet50vd", "decoder_layers": 6, "expansion": 0.5, "points": (2, 2, 2)}
    original, content = second(build, **medium)
    detector, whole = converted(content), outputs(original)
    original.eval_layer = 2
    assert equal(outputs(detector), outputs(original)) and not equal(outputs(detector), whole)
    assert detector.settings["points"] == 2 and len(detector.train()(torch.rand(2, 3, 96, 96)).aux_logits) == 5


def test_classes_keep_rows_merge_or_start_untrained(build, converted, capsys):
    original, content = second(build)
    detector = converted(content, "--classes=car,tram,heavy=bus+truck")
    printed = capsys.readouterr().out
    assert "untrained: tram" in printed and "best of their parts: heavy" in printed and "77 classes" in printed
    assert detector.classes == ("car", "tram", "heavy") and detector.provenance["untrained_classes"] == ["tram"]
    for published, own in zip(original.class_heads, detector.class_heads, strict=True):
        assert torch.equal(own.weight[[0, 2, 3]], published.weight[[2, 5, 7]])
        assert torch.equal(own.bias[[0, 2, 3]], published.bias[[2, 5, 7]])
    labels = original.label_content.weight
    assert torch.equal(detector.label_content.weight[[0, 2]], torch.stack([labels[2], (labels[5] + labels[7]) / 2]))
    assert not detector.label_content.weight[3].any()
    assert torch.equal(
        converted(content, "--classes=tram,car").class_heads[0].weight[1], original.class_heads[0].weight[2]
    )


def test_a_union_scores_as_the_best_of_its_parts(build, converted):
    _, content = second(build)
    parts, union = converted(content, "--classes=car,bus,truck"), converted(content, "--classes=vehicle=car+bus+truck")
    logits, boxes = outputs(parts)
    assert equal(outputs(union), (logits.amax(-1, keepdim=True), boxes))
    assert logits.argmax(-1).unique().numel() > 1


def test_info_prints_the_provenance(build, converted, tmp_path, capsys):
    detector = converted(second(build)[1], "--classes=car,bus")
    capsys.readouterr()
    assert main(["info", str(tmp_path / "own.safetensors")]) == 0
    info = json.loads(capsys.readouterr().out)
    assert info["classes"] == ["car", "bus"] and info["preprocessing"]["size"] == [96, 96] and info["thresholds"] == {}
    assert info["provenance"]["converted_from"] == "published.pth" and len(info["provenance"]["sha256"]) == 64
    assert info["parameters"] == sum(p.numel() for p in detector.parameters()) and len(info["hash"]) == 64


def test_the_same_file_gives_the_same_bytes(build, converted, tmp_path):
    _, content = second(build)
    converted(content, "--classes=car,tram")
    first = (tmp_path / "own.safetensors").read_bytes()
    torch.rand(7)
    converted(content, "--classes=car,tram")
    assert (tmp_path / "own.safetensors").read_bytes() == first


# Refused checkpoints


@pytest.fixture
def refused(tmp_path, capsys):
    """Run a failing conversion and return its message; no file may be written."""

    def run(*options, path=tmp_path / "published.pth"):
        assert main(["convert", f"--weights={path}", f"--output={tmp_path / 'own.safetensors'}", *options]) == 1
        assert not (tmp_path / "own.safetensors").exists()
        printed = capsys.readouterr().err
        assert str(path.name) in printed or options
        return printed

    return run


class Touch:
    """Creates a file when unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("writer", [pickle.dump, torch.save])
def test_code_in_a_checkpoint_does_not_run(refused, tmp_path, writer):
    with (tmp_path / "published.pth").open("wb") as file:
        writer({"model": {"a": torch.zeros(1)}, "args": Touch(tmp_path / "touched")}, file)
    assert "could run code" in refused()
    assert not (tmp_path / "touched").exists()


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "is empty"),
        (b"<!DOCTYPE html><html>404</html>", "is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "Git LFS pointer"),
        (b"\x89PNG nothing of the kind", "is no checkpoint of tensors"),
    ],
)
def test_files_that_are_no_checkpoints(refused, tmp_path, data, words):
    (tmp_path / "published.pth").write_bytes(data)
    assert words in refused()


@pytest.mark.parametrize("share", [0.3, 0.9, 0.999])
@pytest.mark.parametrize("kind", ["pth", "safetensors"])
def test_a_file_cut_short(refused, tmp_path, share, kind):
    path, tensors = tmp_path / f"published.{kind}", {"a": torch.zeros(1000), "b": torch.ones(9)}
    torch.save({"model": tensors}, path) if kind == "pth" else save_file(tensors, path)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    assert "cut short" in refused(path=path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"model.0.conv.weight": torch.zeros(1)}, "has an unsupported architecture"),
        ({"fc.weight": torch.zeros(1), "layer1.0.conv1.weight": torch.zeros(1)}, "is a ResNet classifier"),
        ({"state_dict": {"detector.level_embed": torch.zeros(1)}}, "training checkpoint of cahqp"),
        ({"epoch": 3}, "no named weights"),
        ([torch.zeros(1)], "holds a list"),
    ],
)
def test_checkpoints_of_something_else(refused, tmp_path, content, words):
    torch.save(content, tmp_path / "published.pth")
    assert words in refused()


def test_a_missing_file(refused, tmp_path):
    assert "does not exist" in refused()
    (tmp_path / "empty").mkdir()
    assert "holds no model.safetensors" in refused(path=tmp_path / "empty")


def break_state(state, change):
    """Break a checkpoint in one way."""
    if change == "unknown":
        state["decoder.wings"] = torch.zeros(1)
    if change == "missing":
        del state["encoder.lateral_convs.0.conv.weight"]
    if change == "misshapen":
        state["decoder.query_pos_head.layers.0.bias"] = torch.zeros(3)
    if change == "fewer classes":
        state["decoder.enc_score_head.bias"] = torch.zeros(5)
    if change == "a backbone of another depth":
        state |= {n.replace("blocks.1", "blocks.2"): t for n, t in state.items() if ".res_layers.0.blocks.1" in n}
    return state


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("unknown", "unknown decoder.wings"),
        ("missing", "missing encoder.lateral.0.conv.weight"),
        ("misshapen", "query_position.layers.0.bias is [3], not [64]"),
        ("fewer classes", "proposal_class.bias has 5 rows where the first class head has 80"),
        ("a backbone of another depth", "(3, 2, 2, 2) blocks"),
    ],
)
def test_weights_that_do_not_fit(build, refused, tmp_path, change, words):
    _, content = second(build)
    torch.save(break_state(content["ema"]["module"], change), tmp_path / "published.pth")
    assert words in refused()


def test_a_missing_layer_is_no_smaller_model(build, refused, tmp_path):
    _, content = official(build, 4, shared=True)
    content["model"] = {n: t for n, t in content["model"].items() if "decoder.layers.1." not in n}
    torch.save(content, tmp_path / "published.pth")
    assert "decoder layers for 1" in refused()


def test_copies_of_a_shared_head_must_agree(build, refused, tmp_path):
    _, content = official(build, 4, shared=True)
    content["model"]["transformer.decoder.class_embed.0.bias"] = torch.zeros(91)
    torch.save(content, tmp_path / "published.pth")
    assert "class_embed.0.bias and transformer.decoder.class_embed.0.bias should be one weight" in refused()


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("--classes=rickshaw,tram", "has none of them"),
        ("--classes=lorrys=truk", "truk (did you mean truck?)"),
        ("--classes=car,,bus", "empty name"),
        ("--classes=car,car", "twice"),
        ("--names=a,b", "80 outputs, and --names has 2"),
    ],
)
def test_impossible_classes(build, refused, tmp_path, option, words):
    torch.save(second(build)[1], tmp_path / "published.pth")
    assert words in refused(option)


def test_fit_with_a_published_file_names_the_convert_command(arguments, tmp_path, capsys):
    torch.save({}, tmp_path / "coco.pth")
    given = [*arguments("retrain"), f"--model.weights={tmp_path / 'coco.pth'}", f"--output={tmp_path / 'run'}"]
    assert main(given) == 1
    assert f"cahqp convert {tmp_path / 'coco.pth'} coco.safetensors" in capsys.readouterr().err


# `cahqp init` starts from them


@pytest.fixture
def init(build, recordings, served, tmp_path, monkeypatch):
    """Run `init` in an empty folder, with the small student as a published checkpoint on a local server."""
    torch.save(second(build)[1], served.folder / "small.pth")
    entry = replace(PUBLISHED["rtdetr-r18"], url=f"{served.url}/small.pth")
    monkeypatch.setitem(PUBLISHED, "rtdetr-r18", entry)
    monkeypatch.chdir(tmp_path)
    given = ["--source", str(recordings["day"]), "--val", str(recordings["val"])]
    return lambda *more: main(["init", "my", *given, "--target", str(recordings["night"]), *more])


def test_init_starts_from_a_published_checkpoint_with_the_classes_of_the_labels(init, tmp_path):
    assert init("--student", "rtdetr-r18") == 0
    detector = load(tmp_path / "my/weights/rtdetr-r18.safetensors")
    assert {"car", "bus"} <= set(detector.classes) <= {"car", "bus", "truck", "motorcycle", "person"}
    config = (tmp_path / "my/configs/student.yaml").read_text()
    assert "my/weights/rtdetr-r18.safetensors" in config and "Apache-2.0" in config


def test_init_takes_a_local_checkpoint_and_contacts_nobody(init, served, tmp_path):
    assert init("--student", str(served.folder / "small.pth")) == 0
    assert (tmp_path / "my/weights/small.safetensors").is_file()
    assert served.ranges == []


def test_init_takes_a_model_file_as_it_is(init, teacher, tmp_path):
    assert init("--teacher", str(teacher)) == 0
    plan = (tmp_path / "my/plan.yaml").read_text()
    assert f'weights: "{teacher}"' in plan and "fit: []" in plan


def test_init_names_the_known_checkpoints(init, tmp_path, capsys):
    assert init("--student", "rtdetr-18") == 1
    assert "Did you mean rtdetr-r18? Known: rtdetr-r18, rtdetr-r34" in capsys.readouterr().err
    assert not (tmp_path / "my").exists()
