"""Every regularizer acts the same whoever writes the loop: plain, closure, accumulation, GradScaler, Lightning."""

import copy
import importlib
import inspect
import json
import warnings

import pytest
import torch
from torch.nn import functional as F

import prunus
from prunus.core import FileError
from prunus.regularizers import attach, regularizers
from tests.hand_built import batches, residual

STEPS = 4
STRENGTH = 0.05
LR = 0.1


def variants():
    for entry in regularizers:
        ways = [{}, {"proximal": True}] if "proximal" in inspect.signature(entry.call).parameters else [{}]
        for way in ways:
            id = "-".join([entry.name, *way])
            yield pytest.param(lambda call=entry.call, way=way: call(strength=STRENGTH, **way), id=id)


every = pytest.mark.parametrize("make", list(variants()))


def setup(make, fused=False):
    model, groups = residual()
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=LR, momentum=0.9, fused=fused)
    handle = attach(make(), groups, optimizer)
    return model, optimizer, handle


def loss_of(model, batch):
    x, y = batch
    return F.cross_entropy(model(x), y)


def plain(make):
    """The loop everyone writes: the network it ends with, and the gradients of its last step."""
    model, optimizer, _ = setup(make)
    for batch in batches(STEPS):
        optimizer.zero_grad()
        loss_of(model, batch).backward()
        optimizer.step()
    return model


def assert_same(model, reference, rtol=0.0, atol=0.0):
    for (name, p), q in zip(model.named_parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=rtol, atol=atol, msg=lambda m, name=name: f"{name}: {m}")
        torch.testing.assert_close(p.grad, q.grad, rtol=rtol, atol=atol, msg=lambda m, name=name: f"{name}.grad: {m}")


@every
def test_it_acts_at_all_and_does_nothing_at_strength_zero(make):
    pressed = plain(make)
    model, groups = residual()
    model.train()
    free = torch.optim.SGD(model.parameters(), lr=LR, momentum=0.9)
    for batch in batches(STEPS):
        free.zero_grad()
        loss_of(model, batch).backward()
        free.step()
    different = [n for (n, p), q in zip(pressed.named_parameters(), model.parameters(), strict=True) if not p.equal(q)]
    assert different
    idle = plain(lambda: type(make())(make().roles, lambda ws: [0 * w for w in ws], lambda ws, lr: [+w for w in ws]))
    assert_same(idle, model)


@every
def test_a_closure_gives_equal_gradients(make):
    for by_name in (False, True):
        model, optimizer, _ = setup(make)
        for batch in batches(STEPS):

            def closure(model=model, optimizer=optimizer, batch=batch):
                optimizer.zero_grad()
                loss = loss_of(model, batch)
                loss.backward()
                return loss

            loss = optimizer.step(closure=closure) if by_name else optimizer.step(closure)
            assert loss.ndim == 0 and loss.isfinite(), "the loss of the user's closure comes back"
        assert_same(model, plain(make))


@every
def test_a_closure_that_is_called_twice_is_penalised_each_time(make):
    """As in L-BFGS, which evaluates several times a step: every gradient it sees has the penalty exactly once."""
    model, optimizer, _ = setup(make)
    optimizer.param_groups[0]["lr"] = 0.0
    batch = batches(1)[0]

    def closure():
        optimizer.zero_grad()
        loss = loss_of(model.eval(), batch)
        loss.backward()
        return loss

    optimizer.step(closure)
    once = [p.grad.clone() for p in model.parameters()]
    optimizer.step(lambda: (closure(), closure())[1])
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), once, strict=True))


@every
def test_accumulated_gradients_are_penalised_once_a_step(make):
    model, optimizer, _ = setup(make)
    reference, other, _ = setup(make)
    for m in (model, reference):
        m.eval()  # batch statistics would tell half a batch from a whole one
    for x, y in batches(STEPS):
        optimizer.zero_grad()
        for half in ((x[:2], y[:2]), (x[2:], y[2:])):
            (loss_of(model, half) / 2).backward()
        optimizer.step()
        other.zero_grad()
        loss_of(reference, (x, y)).backward()
        other.step()
    assert_same(model, reference, rtol=1e-4, atol=1e-5)


@every
@pytest.mark.parametrize("fused", [False, True])
def test_a_grad_scaler_changes_nothing_and_a_skipped_step_is_skipped(make, fused):
    model, optimizer, _ = setup(make, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=64.0, growth_interval=1000)
    for number, batch in enumerate(batches(STEPS)):
        if number == 2:
            before = [p.detach().clone() for p in model.parameters()]
            optimizer.zero_grad()
            scaler.scale(loss_of(model.eval(), batch) * float("inf")).backward()
            model.train()
            scaler.step(optimizer)
            scaler.update()
            assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))
            assert scaler.get_scale() == 32.0
        optimizer.zero_grad()
        scaler.scale(loss_of(model, batch)).backward()
        scaler.step(optimizer)
        scaler.update()
    reference = plain(make)
    for p, q in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)


@every
def test_clipping_comes_before_the_penalty(make):
    model, optimizer, _ = setup(make)
    reference, other, handle = setup(make)
    handle.remove()
    regularizer = make()
    if regularizer.start is not None:
        pytest.skip("its own closed form has clipped gradients")
    gammas = [p for n, p in reference.named_parameters() if n in ("bn.weight", "bn_b.weight", "bn_a.weight")]
    for batch in batches(STEPS):
        for m, o in ((model, optimizer), (reference, other)):
            o.zero_grad()
            loss_of(m, batch).backward()
            torch.nn.utils.clip_grad_norm_(m.parameters(), 0.1)
        optimizer.step()
        with torch.no_grad():
            if regularizer.gradient is not None:
                for p in gammas:
                    p.grad += regularizer.gradient([p])[0]
            other.step()
            if regularizer.proximal is not None:
                for p in gammas:
                    p.copy_(regularizer.proximal([p], LR)[0])
    assert_same(model, reference)


@pytest.fixture
def lightning():
    """Lightning, importable also beside a torchvision that does not fit a CPU-only torch."""
    try:
        importlib.import_module("prunus.core.torchvision_ops").declare_torchvision_operators()
    except ModuleNotFoundError as missing:
        assert "torchvision_ops" in str(missing)
    return pytest.importorskip("lightning")


@every
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("clip", [None, 0.1])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_lightning_gives_equal_gradients(make, lightning, precision, clip, accumulate):
    model, groups = residual()
    model.train()
    handles = []

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = model

        def configure_optimizers(self):
            optimizer = torch.optim.SGD(model.parameters(), lr=LR, momentum=0.9)
            handles.append(attach(make(), groups, optimizer))
            return optimizer

        def training_step(self, batch, index):
            return loss_of(model, batch)

        def on_train_batch_end(self, *_):
            self.last = [p.grad.clone() for p in model.parameters() if p.grad is not None]

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = lightning.Trainer(
            accelerator="cpu",
            max_epochs=1,
            precision=precision,
            gradient_clip_val=clip,
            accumulate_grad_batches=accumulate,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(Module(), torch.utils.data.DataLoader(batches(STEPS), batch_size=None))

    reference, optimizer, _ = setup(make)
    for number, batch in enumerate(batches(STEPS)):
        if number % accumulate == 0:
            optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16-mixed"):
            loss = loss_of(reference, batch) / accumulate
        loss.backward()
        if number % accumulate == accumulate - 1:
            if clip is not None:
                torch.nn.utils.clip_grad_norm_(reference.parameters(), clip)
            optimizer.step()
    assert len(handles) == 1
    for (name, p), q in zip(model.named_parameters(), reference.named_parameters(), strict=True):
        torch.testing.assert_close(p, q[1], rtol=1e-5, atol=1e-6, msg=lambda m, name=name: f"{name}: {m}")


def train(model, optimizer, data):
    for batch in data:
        optimizer.zero_grad()
        loss_of(model, batch).backward()
        optimizer.step()


@every
@pytest.mark.parametrize("way", ["handle", "pruner", "pruner attached first", "pruner attached again"])
def test_a_resumed_run_is_the_unbroken_one_to_the_bit(make, way):
    """k steps, save, load into fresh objects whose weights moved on since, k steps == 2 k steps."""
    data = batches(6)

    def begun(pruner):
        model, groups = residual()
        model.train()
        optimizer = torch.optim.SGD(model.parameters(), lr=LR, momentum=0.9)
        if not pruner:
            return model, optimizer, attach(make(), groups, optimizer)
        budget, x = prunus.Budget(params=0.9), torch.zeros(2, 3, 6, 6)
        return model, optimizer, prunus.Pruner(model, x, budget=budget, regularizer=make())

    pruner = way != "handle"
    model, optimizer, pressure = begun(pruner)
    if pruner:
        pressure.attach(optimizer)
    train(model, optimizer, data[:3])
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():  # as far as a long training moves weights
        for p in model.parameters():
            p.add_(torch.randn(p.shape, generator=draw))
    saved = json.loads(json.dumps(pressure.state_dict()))
    state = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    if way == "pruner attached again":
        pressure.detach()
        pressure.attach(optimizer)
    train(model, optimizer, data[3:])

    again, theirs, resumed = begun(pruner)
    if way == "pruner attached first":
        resumed.attach(theirs)
    again.load_state_dict(state[0])
    theirs.load_state_dict(state[1])
    resumed.load_state_dict(saved)
    if way in ("pruner", "pruner attached again"):
        resumed.attach(theirs)
    train(again, theirs, data[3:])
    assert_same(again, model)
    assert resumed.state_dict() == pressure.state_dict()


@every
def test_the_state_of_another_regularizer_is_refused(make):
    _, _, handle = setup(make)
    with pytest.raises(FileError, match="of another one"):
        handle.load_state_dict([{"nothing": {"dtype": "int64", "shape": [1], "values": [0]}}])
