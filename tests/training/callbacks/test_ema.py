import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from safetensors.torch import load_file
from torch import nn
from torch.utils.data import DataLoader

from cahqp.__main__ import main
from cahqp.errors import ConfigError
from cahqp.training.base import DetectionModule
from cahqp.training.callbacks.ema import EMA


class Tiny(LightningModule):
    """A BatchNorm, which has a buffer that counts, and a linear layer, whose weights are noted as they change."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 2))
        self.trained, self.validated = [], []

    def training_step(self, batch, index):
        return self.layers(batch).square().sum()

    def on_train_batch_end(self, *_):
        self.trained.append(self.layers[1].weight.detach().clone())

    def validation_step(self, batch, index):
        self.validated.append(self.layers[1].weight.detach().clone())
        self.log("score", float(len(self.validated)))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.01)


def loader(batches):
    return DataLoader(list(batches), batch_size=None)


def fit(module, *callbacks, folder, **options):
    batches = torch.randn(6, 4, 2, generator=torch.Generator().manual_seed(0))
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    settings = {"max_epochs": 2, "num_sanity_val_steps": 0, "accelerator": "cpu", **quiet, **options}
    trainer = Trainer(default_root_dir=folder, callbacks=list(callbacks), **settings)
    trainer.fit(module, loader(batches), loader(batches[:1]))
    return trainer


@pytest.fixture
def run(tmp_path):
    torch.manual_seed(0)
    module, average = Tiny(), EMA(decay=0.5)
    checkpoint = ModelCheckpoint(tmp_path, filename="last", monitor="score", mode="max", enable_version_counter=False)
    fit(module, average, checkpoint, folder=tmp_path)
    return module, torch.load(tmp_path / "last.ckpt", weights_only=True)


def test_the_average_is_what_the_formula_says(run):
    module, _ = run
    expected = module.trained[0]  # the first step's weights are taken as they are
    for weight in module.trained[1:]:
        expected = 0.5 * expected + 0.5 * weight
    assert torch.allclose(module.layers[1].weight, expected)


def test_what_was_validated_is_what_is_saved_and_what_stays(run):
    module, saved = run
    assert torch.equal(saved["state_dict"]["layers.1.weight"], module.validated[-1])
    assert torch.equal(module.layers[1].weight, module.validated[-1])
    assert not torch.equal(saved["current_model_state"]["layers.1.weight"], module.validated[-1])


def test_a_counting_buffer_is_copied(run):
    counted = run[1]["state_dict"]["layers.0.num_batches_tracked"]
    assert counted.dtype == torch.int64
    assert int(counted) == 12


def test_without_decay_the_average_is_the_model(tmp_path):
    module = Tiny()
    fit(module, EMA(decay=0), ModelCheckpoint(tmp_path), folder=tmp_path)
    assert torch.equal(module.layers[1].weight, module.trained[-1])


def test_the_decay_grows_while_warming_up(tmp_path):
    module = Tiny()
    fit(module, EMA(decay=0.9, warmup=1000), ModelCheckpoint(tmp_path), folder=tmp_path)
    assert torch.allclose(module.layers[1].weight, module.trained[-1], atol=1e-2)


def test_validation_before_the_first_update_sees_the_model(tmp_path):
    class Late(EMA):
        def should_update(self, step_idx=None, epoch_idx=None):
            return step_idx is not None and step_idx >= 6

    module = Tiny()
    fit(module, Late(decay=0.5), ModelCheckpoint(tmp_path), folder=tmp_path)
    assert torch.equal(module.validated[0], module.trained[5])
    assert not torch.equal(module.validated[1], module.trained[11])


def test_accumulated_gradients_update_once_a_step(tmp_path):
    average = EMA(decay=0.5)
    fit(Tiny(), average, ModelCheckpoint(tmp_path), folder=tmp_path, accumulate_grad_batches=3)
    assert int(average._average_model.n_averaged) == 4


def test_checkpoints_of_raw_weights_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="save_weights_only"):
        fit(Tiny(), EMA(), ModelCheckpoint(tmp_path, save_weights_only=True), folder=tmp_path)


@pytest.mark.parametrize("decay", [-0.1, 1.0])
def test_a_decay_outside_its_range_is_refused(decay):
    with pytest.raises(ConfigError, match=r"ema\.decay"):
        EMA(decay)


def test_testing_in_the_process_that_trained_keeps_the_average(tmp_path):
    module = Tiny()
    best = ModelCheckpoint(tmp_path, monitor="score", mode="max")
    trainer = fit(module, EMA(decay=0.5), best, folder=tmp_path)
    module.test_step = module.validation_step
    trainer.test(module, loader(torch.zeros(1, 4, 2)), ckpt_path="best", weights_only=True)
    assert torch.equal(module.validated[-1], module.validated[-2])


def test_a_fit_validates_saves_and_publishes_the_same_weights(arguments, tmp_path, monkeypatch):
    seen, plain = [], DetectionModule.validation_step

    def step(module, batch, index):
        seen.append({k: v.clone() for k, v in module.detector.state_dict().items()})
        plain(module, batch, index)

    monkeypatch.setattr(DetectionModule, "validation_step", step)
    monkeypatch.setattr(DetectionModule, "selection", "last")
    assert main([*arguments("student"), "--trainer.max_epochs=1", f"--output={tmp_path / 'run'}"]) == 0
    saved = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    published = load_file(tmp_path / "run" / "model.safetensors")
    for name, value in seen[-1].items():
        assert torch.equal(saved[f"detector.{name}"], value), name
        assert torch.equal(published[name], value), name


def test_the_average_follows_the_model_to_its_device():
    module, ema = Tiny(), EMA(0.9)
    ema.setup(Trainer(logger=False, accelerator="cpu"), module, "fit")
    module.to("meta")  # as a strategy does, after the callbacks are set up
    ema.on_fit_start(Trainer(logger=False, accelerator="cpu"), module)
    assert {tensor.device.type for tensor in ema.average.state_dict().values()} == {"meta"}
