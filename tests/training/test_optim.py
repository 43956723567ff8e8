"""Optimizers follow a model that grows, freezes and is loaded again."""

import math
import sys

import pytest
import torch
from torch import nn

from clprompt.errors import CheckpointError, ConfigError, ProtocolError
from clprompt.prompting.heads import grown
from clprompt.training import optim


class Growing(nn.Module):
    """What the optimizers need of a model: rows that grow, and a prompt per stage, the last one trained."""

    def __init__(self, rows=2):
        super().__init__()
        self.head = nn.Parameter(torch.arange(3.0 * rows).reshape(rows, 3) / 10)
        self.prompts = nn.ParameterList([nn.Parameter(torch.ones(2, 3))])

    def grow(self, rows):
        self.head = grown(self.head, torch.zeros(rows, 3))

    def add_prompt(self):
        for prompt in self.prompts:
            prompt.requires_grad_(False)
        self.prompts.append(nn.Parameter(torch.full((1 + len(self.prompts), 3), 0.5)))

    def param_groups(self):
        prompts = {n: p for n, p in self.named_parameters() if n.startswith("prompts") and p.requires_grad}
        return [
            {"name": f"prompt {len(self.prompts)}", "params": prompts, "lr": 0.1 / len(self.prompts)},
            {"name": "head", "params": {"head": self.head} if self.head.requires_grad else {}},
        ]

    def step(self, optimizer):
        optimizer.zero_grad()
        loss = ((self.head - 1) ** 2).sum()
        loss = loss + sum(((p - 2) ** 2).sum() for p in self.prompts if p.requires_grad)
        loss.backward()
        optimizer.step()


def names(optimizer):
    return [(group["group"], group["names"]) for group in optimizer.param_groups]


@pytest.mark.parametrize(("name", "momentum"), [("adam", 0.0), ("adamw", 0.0), ("sgd", 0.9)])
def test_moments_are_padded_with_zeros_when_rows_are_added(name, momentum):
    model = Growing()
    optimizer = optim.build(model, optimizer=name, momentum=momentum, lr=0.1)
    for _ in range(3):
        model.step(optimizer)
    before = {k: v.clone() for k, v in optimizer.state[model.head].items()}
    model.grow(2)
    optim.sync(optimizer, model)
    after = optimizer.state[model.head]
    assert set(after) == set(before)
    for key, value in before.items():
        if value.ndim:
            assert value.abs().min() > 0
            assert torch.equal(after[key][:2], value)
            assert torch.equal(after[key][2:], torch.zeros(2, 3))
        else:
            assert torch.equal(after[key], value)
    model.step(optimizer)
    assert (model.head[2:] > 0).all()


@pytest.mark.parametrize("name", ["adam", "sgd"])
def test_old_rows_train_as_if_the_new_ones_had_always_been_there(name):
    grows, whole = Growing(rows=2), Growing(rows=2)
    whole.head = nn.Parameter(torch.cat([whole.head.detach(), torch.zeros(2, 3)]))
    one, other = (optim.build(m, optimizer=name, momentum=0.9, lr=0.1) for m in (grows, whole))
    for m, o in ((grows, one), (whole, other)):
        for _ in range(3):
            o.zero_grad()
            ((m.head[:2] - 1) ** 2).sum().backward()
            o.step()
    grows.grow(2)
    optim.sync(one, grows)
    for m, o in ((grows, one), (whole, other)):
        for _ in range(3):
            m.step(o)
    assert torch.equal(grows.head, whole.head)


def test_sync_exchanges_frozen_parameters_for_new_ones():
    model = Growing()
    optimizer = optim.build(model, lr=0.1)
    model.step(optimizer)
    old = model.prompts[0]
    kept = optimizer.state[model.head]["exp_avg"].clone()
    value = old.detach().clone()
    model.add_prompt()
    optim.sync(optimizer, model)
    assert old not in optimizer.state
    assert all(p is not old for group in optimizer.param_groups for p in group["params"])
    assert ("prompt 2", ["prompts.1"]) in names(optimizer)
    assert torch.equal(optimizer.state[model.head]["exp_avg"], kept)
    model.step(optimizer)
    assert torch.equal(old, value)
    assert model.prompts[1].min() > 0.5


def test_a_new_group_gets_its_own_rate():
    model = Growing()
    optimizer = optim.build(model, lr=0.01)
    model.add_prompt()
    optim.sync(optimizer, model)
    rates = {group["group"]: group["initial_lr"] for group in optimizer.param_groups if group["params"]}
    assert rates == {"prompt 2": 0.05, "head": 0.01}


def test_sync_without_a_change_changes_nothing():
    model = Growing()
    optimizer = optim.build(model, lr=0.1)
    model.step(optimizer)
    before = optim.optimizer_state(optimizer, model)
    optim.sync(optimizer, model)
    assert str(optim.optimizer_state(optimizer, model)) == str(before)


def test_a_model_that_trains_nothing_needs_no_optimizer():
    model = Growing()
    model.head.requires_grad_(False)
    model.prompts[0].requires_grad_(False)
    assert optim.build(model) is None


@pytest.mark.parametrize(("name", "momentum"), [("adam", 0.0), ("adamw", 0.0), ("sgd", 0.9), ("sgd", 0.0)])
def test_a_loaded_optimizer_continues_to_the_same_bits(name, momentum):
    settings = {"optimizer": name, "momentum": momentum, "lr": 0.01, "weight_decay": 0.1}
    model = Growing()
    optimizer = optim.build(model, **settings)
    model.step(optimizer)
    model.add_prompt()
    model.grow(3)
    optim.sync(optimizer, model)  # its groups are now in another order than those of a new optimizer
    optim.set_learning_rate(optimizer, "cosine", 3, 10)
    model.step(optimizer)

    twin = Growing()
    twin.add_prompt()
    twin.grow(3)
    twin.load_state_dict(model.state_dict())
    loaded = optim.build(twin, **settings)
    assert names(loaded) != names(optimizer)
    optim.load_optimizer_state(loaded, twin, optim.optimizer_state(optimizer, model))
    assert names(loaded) == names(optimizer)
    for m, o in ((model, optimizer), (twin, loaded)):
        for step in range(4, 8):
            rate = optim.set_learning_rate(o, "cosine", step, 10)
            m.step(o)
            optim.clip(o, 0.1)
    assert rate > 0
    for (key, value), other in zip(model.state_dict().items(), twin.state_dict().values(), strict=True):
        assert torch.equal(value, other), key


@pytest.mark.parametrize("part", ["moments", "groups"])
def test_state_of_a_parameter_that_the_model_lacks_is_refused(part):
    model = Growing()
    optimizer = optim.build(model)
    group, *_ = optim.optimizer_state(optimizer, model)["groups"]
    state = {"moments": {}, "groups": []}
    state[part] = {"prompts.7": {}} if part == "moments" else [{**group, "names": ["prompts.7"]}]
    with pytest.raises(CheckpointError, match=r"prompts\.7, which the model lacks"):
        optim.load_optimizer_state(optimizer, model, state)


def test_the_rate_is_a_function_of_the_step_alone():
    optimizer = optim.build(Growing(), lr=0.02)
    for step in (7, 0, 3, 10, 3):
        optim.set_learning_rate(optimizer, "cosine", step, 10)
        factor = (1 + math.cos(math.pi * step / 10)) / 2
        assert [group["lr"] for group in optimizer.param_groups] == pytest.approx(
            [0.1 * factor, 0.02 * factor]
        )
    assert optim.set_learning_rate(optimizer, "constant", 7, 10) == pytest.approx(0.1)


def rates(schedule: str, epochs: int, per_epoch: int, warmup: float = 0.0) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.001)
    optimizer.param_groups[0]["initial_lr"] = 0.001
    steps = epochs * per_epoch
    return [
        optim.set_learning_rate(optimizer, schedule, step, steps, warmup, epochs) for step in range(steps)
    ]


def test_the_schedule_of_coda_prompt_is_what_its_released_scheduler_sets():
    # its CosineSchedule with K=5 over Adam at 1.0, stepped before every epoch but the first, as it was run
    released = [1.0, 1.0, 0.925375, 0.712639, 0.393541]
    factors = [rate / 0.001 for rate in rates("cosine-coda", 5, 3)]
    assert factors == pytest.approx([rate for rate in released for _ in range(3)], abs=1e-6)


def test_the_schedule_of_coda_prompt_is_a_quarter_cosine_from_the_second_epoch_on():
    quarter = [0.001 * math.cos(99 * math.pi * number / (200 * (20 - 1))) for number in range(19)]
    published = [0.001, *quarter]
    assert rates("cosine-coda", 20, 3) == [rate for rate in published for _ in range(3)]
    assert sum(published) / 20 == pytest.approx(0.000685, abs=1e-6)


def test_the_schedule_of_coda_prompt_has_the_full_rate_in_a_single_epoch():
    assert rates("cosine-coda", 1, 4) == [0.001] * 4


def test_a_warm_up_is_a_factor_of_the_schedule_of_coda_prompt():
    plain, risen = rates("cosine-coda", 5, 2), rates("cosine-coda", 5, 2, warmup=0.3)
    assert risen == pytest.approx([plain[0] / 3, plain[1] * 2 / 3, plain[2], *plain[3:]])


def test_the_gradient_is_clipped_over_all_groups_together():
    model = Growing()
    optimizer = optim.build(model)
    for parameter in (model.head, model.prompts[0]):
        parameter.grad = torch.ones_like(parameter)
    optim.clip(optimizer, None)
    assert model.head.grad.max() == 1
    optim.clip(optimizer, 0.5)
    both = torch.cat([model.head.grad.flatten(), model.prompts[0].grad.flatten()])
    assert both.norm().item() == pytest.approx(0.5, rel=1e-4)
    assert both.min() == both.max()


def test_the_rate_rises_over_the_warm_up_and_then_follows_the_schedule():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    optimizer.param_groups[0]["initial_lr"] = 0.1
    # 3 steps rise
    rates = [optim.set_learning_rate(optimizer, "cosine", step, 15, 0.2) for step in range(15)]
    wanted = [(s + 1) / 3 if s < 3 else (1 + math.cos(math.pi * (s - 3) / 12)) / 2 for s in range(15)]
    assert rates == pytest.approx([0.1 * factor for factor in wanted])
    flat = [optim.set_learning_rate(optimizer, "constant", step, 10, 0.5) for step in range(10)]
    assert flat == pytest.approx([0.02, 0.04, 0.06, 0.08] + [0.1] * 6)


# ------------------------------------------------------------------------------------------ of one's own


def slow_sgd(groups, *, lr, weight_decay):
    return torch.optim.SGD(groups, lr=lr / 10, weight_decay=weight_decay)


def halves(step, steps, epochs):
    return 0.5 ** (step * epochs // steps)


def test_a_function_of_ones_own_makes_the_optimizer_and_it_follows_a_model_that_grows(tmp_path, monkeypatch):
    (tmp_path / "my_optimizers.py").write_text(
        "import torch\n\n"
        "def slow(groups, *, lr, weight_decay):\n"
        "    return torch.optim.SGD(groups, lr=lr / 10)\n"
    )
    monkeypatch.chdir(tmp_path)
    for factory in (slow_sgd, "my_optimizers:slow"):
        model = Growing()
        optimizer = optim.build(model, optimizer=factory, lr=0.2)
        assert isinstance(optimizer, torch.optim.SGD)
        assert [group["initial_lr"] for group in optimizer.param_groups] == [
            0.1,
            0.02,
        ]  # the group's own, lr / 10
        model.step(optimizer)
        model.grow(2)
        optim.sync(optimizer, model)
        assert optimizer.param_groups[1]["params"][0] is model.head
    monkeypatch.delitem(sys.modules, "my_optimizers")


def test_a_function_of_ones_own_is_the_schedule():
    optimizer = optim.build(Growing(), lr=0.2)
    rates = [optim.set_learning_rate(optimizer, halves, step, 4, epochs=2) for step in range(4)]
    assert rates == [0.1, 0.1, 0.05, 0.05]


@pytest.mark.parametrize(
    ("factory", "says"),
    [
        ("no_such_module:make", "cannot be imported: ModuleNotFoundError"),
        ("torch:nothing", "cannot be imported: AttributeError"),
        ("torch:__version__", "must be a function, got TorchVersion"),
        (
            "addam",
            'must be one of "adam", "adamw", "sgd" or module:function, got "addam"; did you mean "adam"',
        ),
        (lambda groups: None, "must take groups of parameters, lr= and weight_decay="),
        (lambda groups, lr, weight_decay: None, "must return a torch.optim.Optimizer, got NoneType"),
        (
            lambda groups, lr, weight_decay: torch.optim.SGD([p for g in groups for p in g["params"]], lr=lr),
            "must keep the groups that it is given",
        ),
    ],
)
def test_what_makes_no_optimizer_is_one_line(factory, says):
    with pytest.raises(ConfigError, match=r"training\.optimizer") as caught:
        optim.build(Growing(), optimizer=factory)
    assert says in str(caught.value)


def test_an_optimizer_made_by_hand_is_not_synced():
    model = Growing()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = list(optimizer.param_groups[0]["params"])
    model.grow(1)
    with pytest.raises(ProtocolError, match=r"optim\.build\(model, optimizer=SGD, lr=\.\.\.\) makes one"):
        optim.sync(optimizer, model)
    assert optimizer.param_groups[0]["params"] == before
    optimizer = optim.build(model, optimizer=torch.optim.SGD, lr=0.1)
    model.grow(1)
    optim.sync(optimizer, model)
    assert any(p is model.head for group in optimizer.param_groups for p in group["params"])
