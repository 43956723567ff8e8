"""Prompts that were learnt beforehand: where training starts, and what stays in front, in every method."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from clprompt import registry
from clprompt.errors import ClpromptError, DataError, DataWarning
from clprompt.prompting import prompt_file
from clprompt.prompting.build import construct
from clprompt.prompting.model import PromptModel
from clprompt.testing.bench import NAMES, ToyImages, tiny_backbone, tiny_vit

#: name of a form -> the method and its arguments
FORMS: dict[str, tuple[str, dict[str, Any]]] = {
    "coda_prompt": ("coda_prompt", {"components_per_experience": 2}),
    "coda_prompt, boundary free": ("coda_prompt", {"boundary_free": True, "pool_size": 4}),
    "coop": ("coop", {"length": 4}),
    "coop, two contexts": ("coop", {"length": 3, "contexts": 2}),
    "damvp": ("damvp", {"cluster": False}),
    "damvp, tokens": ("damvp", {"cluster": False, "prompt": "token", "length": 2}),
    "dualprompt": ("dualprompt", {}),
    "dualprompt, boundary free": ("dualprompt", {"boundary_free": True, "pool_size": 3}),
    "dualprompt, coordinated": ("dualprompt", {"coordinate": True}),
    "dualprompt, fresh": ("dualprompt", {"form": "fresh"}),
    "dualprompt, rotary": ("dualprompt", {}),
    "l2p": ("l2p", {}),
    "l2p, coordinated": ("l2p", {"coordinate": True}),
    "l2p, rotary": ("l2p", {}),
    "maple": ("maple", {}),
    "maple, hierarchical": ("maple", {"coupling": "hierarchical"}),
    "multilane": ("multilane", {"prompts": 3, "selectors": 4}),
    "mvp": ("mvp", {}),
    "mvp, prefix": ("mvp", {"variant": "prefix"}),
    "semantic_proxies": ("semantic_proxies", {}),
    "tcpa": ("tcpa", {}),
    "tcpa, rotary": ("tcpa", {}),
    "tcpa, shared": ("tcpa", {"prompts": "shared"}),
    "vpt_deep": ("vpt_deep", {"length": 3}),
    "vpt_deep, rotary": ("vpt_deep", {"length": 3}),
}
#: Nothing can stand in front of these.
UNFROZEN = ("damvp", "maple", "maple, hierarchical", "l2p, coordinated", "semantic_proxies")

every_form = pytest.mark.parametrize("form", FORMS)
frozen_forms = pytest.mark.parametrize("form", [form for form in FORMS if form not in UNFROZEN])


@cache
def backbone_of(name: str, kind: str) -> Any:
    return tiny_backbone(registry.strategies.get(name).target, kind)


@cache
def images() -> tuple[Tensor, Tensor]:
    toys = ToyImages(2)
    return toys.images[:4], torch.as_tensor(toys.targets[:4])


def fresh(form: str, *, seed: int = 0, restored: bool = False, **more: Any) -> PromptModel:
    name, arguments = FORMS[form]
    target = registry.strategies.get(name).target
    kind = "rotary positions and inner norms" if form.endswith(", rotary") else "class token"
    made = construct(target, backbone_of(name, kind), seed=seed, restored=restored, **(arguments | more))
    made.name_classes(NAMES)
    return made


def begun(form: str, *, seed: int = 0, **more: Any) -> PromptModel:
    made = fresh(form, seed=seed, **more)
    begin(made, (4, 1))
    return made


def begin(made: PromptModel, classes: tuple[int, ...]) -> None:
    if made.boundaries != "unused":
        made.begin_experience(classes, lambda: [images()])
    made.observe(torch.tensor(classes))


def step(made: PromptModel) -> None:
    """One step of plain gradient descent, large enough to be seen."""
    pictures, labels = images()
    made.train()
    parameters = list(made.trainable().values())
    made.zero_grad()
    made.training_loss(pictures, labels).loss.backward()
    with torch.no_grad():
        for parameter in parameters:
            if parameter.grad is not None:
                parameter -= 0.1 * parameter.grad


def trained(form: str, path: Path, **more: Any) -> Path:
    """A file with the prompts of a model after one step from another seed."""
    made = begun(form, seed=1, **more)
    step(made)
    prompt_file.write(path, made, sources=[{"name": "toys", "classes": ["Digit Four"]}])
    return path


def values_of(made: PromptModel) -> dict[str, Tensor]:
    return prompt_file.prompts_of(made)


def own(made: PromptModel) -> dict[str, Tensor]:
    extra = ("initial_prompts.", "frozen_prompts.")
    return {k: v.clone() for k, v in made.method_state().items() if not k.startswith(extra)}


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for key, value in one.items():
        assert value.shape == other[key].shape, key
        assert torch.allclose(value.double(), other[key].double(), rtol=0, atol=0, equal_nan=True), key


# ------------------------------------------------------------------------------------------- the start


@every_form
def test_a_start_from_its_own_fresh_values_changes_nothing(form: str, tmp_path: Path) -> None:
    plain, file = begun(form), tmp_path / "own.safetensors"
    prompt_file.write(file, plain, sources=[])
    assert_same(own(begun(form, init_file=str(file))), own(plain))


@every_form
def test_prompts_start_from_the_file_and_training_leaves_it_as_it_is(form: str, tmp_path: Path) -> None:
    file = trained(form, tmp_path / "toys.safetensors")
    content = file.read_bytes()
    made = begun(form, init_file=str(file))
    assert_same(values_of(made), load_file(file))
    step(made)
    assert file.read_bytes() == content
    moved = {name for name, value in values_of(made).items() if not torch.equal(value, load_file(file)[name])}
    assert moved


@every_form
def test_a_state_is_loaded_without_the_file_and_goes_on_to_the_same_bits(form: str, tmp_path: Path) -> None:
    file = trained(form, tmp_path / "toys.safetensors")
    made = begun(form, init_file=str(file))
    step(made)
    file.unlink()
    again = fresh(form, init_file=str(file), restored=True)
    again.load_state_dict(made.method_state())
    for model in (made, again):
        model.end_experience()
        begin(model, (0, 7))
    assert_same(made.method_state(), again.method_state())


def test_one_slot_of_a_file_starts_all_slots_apart(tmp_path: Path) -> None:
    file = trained("l2p", tmp_path / "one.safetensors", pool_size=1, top_k=1)
    slots, start = begun("l2p", init_file=str(file)).prompts.detach(), load_file(file)["prompts"][0]
    apart = slots - start
    assert 0.015 < float(apart.std()) < 0.025
    assert len({tuple(slot.flatten().tolist()) for slot in slots}) == len(slots)
    assert torch.equal(begun("l2p", init_file=str(file)).prompts, slots)
    assert not torch.equal(begun("l2p", seed=3, init_file=str(file)).prompts, slots)


def test_entries_of_later_experiences_start_from_the_file_apart_from_older_ones(tmp_path: Path) -> None:
    file = trained("tcpa", tmp_path / "t.safetensors")
    made = begun("tcpa", init_file=str(file))
    begin(made, (0, 7))
    apart = made.entries["cls"][1].detach() - load_file(file)["cls"][0]
    assert 0.015 < float(apart.std()) < 0.025


def test_what_follows_from_earlier_prompts_does_so_after_a_start_from_a_file(tmp_path: Path) -> None:
    file = trained("dualprompt", tmp_path / "d.safetensors")
    made = begun("dualprompt", init_file=str(file))
    step(made)
    begin(made, (0, 7))
    assert torch.equal(made.e_prompts[1], made.e_prompts[0])


@pytest.mark.parametrize(("length", "fit", "rows"), [(5, "tile", [0, 1, 2, 0, 1]), (2, "cut", [0, 1])])
def test_prompts_of_another_length_are_repeated_or_cut(
    tmp_path: Path, length: int, fit: str, rows: list[int]
) -> None:
    file = trained("vpt_deep", tmp_path / "v.safetensors")
    made = begun("vpt_deep", length=length, init_file=str(file), init_fit=fit)
    assert torch.equal(made.prompts, load_file(file)["prompts"][0][:, rows])


def test_coordination_without_keys_in_the_file_starts_its_own(tmp_path: Path) -> None:
    file = trained("dualprompt", tmp_path / "d.safetensors")
    made, plain = begun("dualprompt, coordinated", init_file=str(file)), begun("dualprompt, coordinated")
    keys = [{k: v for k, v in own(m).items() if k.startswith("coordination.")} for m in (made, plain)]
    assert_same(*keys)


# ------------------------------------------------------------------------------------------- in front


@frozen_forms
def test_frozen_prompts_stay_in_front_and_new_ones_are_learned_beside_them(form: str, tmp_path: Path) -> None:
    file = trained(form, tmp_path / "toys.safetensors")
    plain, made = begun(form), begun(form, init_file=str(file), init_frozen=True)
    assert_same(own(made), own(plain))
    before = {k: v.clone() for k, v in made.state_dict().items() if k.startswith("frozen_prompts.")}
    assert before
    pictures, _ = images()
    with torch.no_grad():
        assert not torch.equal(made.eval()(pictures), plain.eval()(pictures))
    step(made)
    assert_same({k: v for k, v in made.state_dict().items() if k in before}, before)
    assert not any(name.startswith("frozen_prompts.") for name in made.trainable())
    moved = values_of(made)
    assert any(not torch.equal(moved[name], value) for name, value in values_of(plain).items())


@frozen_forms
def test_a_model_with_frozen_prompts_is_loaded_without_the_file(form: str, tmp_path: Path) -> None:
    file = trained(form, tmp_path / "toys.safetensors")
    made = begun(form, init_file=str(file), init_frozen=True)
    step(made)
    file.unlink()
    again = fresh(form, init_file=str(file), init_frozen=True, restored=True)
    again.load_state_dict(made.method_state())
    pictures, _ = images()
    with torch.no_grad():
        assert torch.equal(made.eval()(pictures), again.eval()(pictures))


# ------------------------------------------------------------------------------------------- mistakes


def edited(change: Callable[[dict[str, Any], dict[str, Tensor]], None]) -> Callable[[Path], None]:
    def edit(path: Path) -> None:
        facts, tensors = dict(prompt_file.read(path).facts), load_file(path)
        change(facts, tensors)
        save_file(tensors, path, {"clprompt": json.dumps(facts)})

    return edit


MISTAKES: dict[str, tuple[dict[str, Any], Callable[[Path], Any] | None, str]] = {
    "no file": ({}, Path.unlink, "init_file: no file .*v.safetensors"),
    "no safetensors": ({}, lambda path: path.write_bytes(b"x"), "holds no prompts: "),
    "no facts": (
        {},
        lambda path: save_file({"prompts": torch.zeros(2)}, path),
        "holds no prompts: strategy is missing",
    ),
    "not finite": (
        {},
        edited(lambda facts, tensors: tensors["prompts"].fill_(float("nan"))),
        "prompts has values that are not finite",
    ),
    "other tensors": (
        {},
        edited(lambda facts, tensors: tensors.update(more=torch.zeros(1))),
        "it says prompts and has more, prompts",
    ),
    "other shape": (
        {},
        edited(lambda facts, tensors: tensors.update(prompts=torch.zeros(3, 32))),
        r"prompts has the shape \[3, 32\] for the axes",
    ),
    "no names of classes": (
        {},
        edited(lambda facts, tensors: facts.update(sources=[{"name": "toys"}])),
        "sources.0.classes is missing",
    ),
    "other blocks": (
        {"layers": (0, 1)},
        None,
        r"prompts stands in the blocks \[0, 1, 2, 3, 4\], here in \[0, 1\]",
    ),
    "shorter": ({"length": 5}, None, "prompts has 3 tokens, here 5; init_fit=tile would repeat them"),
    "longer": ({"length": 2}, None, "prompts has 3 tokens, here 2; init_fit=cut would take the first ones"),
    "wrong fit": ({"length": 2, "init_fit": "tile"}, None, "init_fit=cut would .*, got init_fit=tile"),
    "fit of frozen ones": (
        {"init_frozen": True, "init_fit": "cut"},
        None,
        "frozen prompts keep their length",
    ),
    "fit of nothing": ({"init_file": None, "init_fit": "cut"}, None, "init_fit=cut says how an init_file"),
    "frozen nothing": ({"init_file": None, "init_frozen": True}, None, "init_frozen=true says how an init_"),
    "no prompts": ({"layers": ()}, None, "VPTDeepModel has no prompts that a file could hold here"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_one_line(mistake: str, tmp_path: Path) -> None:
    arguments, spoil, text = MISTAKES[mistake]
    file = trained("vpt_deep", tmp_path / "v.safetensors")
    if spoil is not None:
        spoil(file)
    with pytest.raises(ClpromptError, match=text) as error:
        fresh("vpt_deep", **{"init_file": str(file)} | arguments)
    assert "\n" not in str(error.value)


def test_a_file_of_another_method_is_refused(tmp_path: Path) -> None:
    file = trained("vpt_deep", tmp_path / "v.safetensors")
    with pytest.raises(ClpromptError, match="holds prompts of vpt_deep, not of l2p"):
        fresh("l2p", init_file=str(file))


def test_a_file_of_another_backbone_is_refused(tmp_path: Path) -> None:
    file = trained("vpt_deep", tmp_path / "v.safetensors")
    target = registry.strategies.get("vpt_deep").target
    for other in (tiny_vit(width=16), tiny_vit("registers and layer scale")):
        with pytest.raises(ClpromptError, match=r"was learnt .*, not on this"):
            construct(target, other, length=3, init_file=str(file))


def test_prompts_that_a_file_lacks_are_named(tmp_path: Path) -> None:
    file = trained("dualprompt", tmp_path / "d.safetensors", e_layers=())
    with pytest.raises(ClpromptError, match="holds general; dualprompt has general, expert here"):
        fresh("dualprompt", init_file=str(file))


def test_pools_of_two_sizes_are_refused(tmp_path: Path) -> None:
    file = trained("l2p", tmp_path / "p.safetensors")
    with pytest.raises(ClpromptError, match="prompts has 10 slots, here 12: only one, or as many"):
        fresh("l2p", pool_size=12, init_file=str(file))


@pytest.mark.parametrize("form", UNFROZEN)
def test_what_nothing_can_stand_in_front_of_is_named(form: str, tmp_path: Path) -> None:
    file = trained(form, tmp_path / "x.safetensors")
    with pytest.raises(ClpromptError, match="init_frozen=true"):
        fresh(form, init_file=str(file), init_frozen=True)


def test_a_file_without_its_experience_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ClpromptError, match="has no expert yet"):
        prompt_file.write(tmp_path / "x", fresh("dualprompt"), sources=[])


def test_a_method_without_prompts_is_refused_in_a_configuration() -> None:
    from clprompt.experiment.config import load

    with pytest.raises(ClpromptError, match=r"strategy\.init_file: strategy ncm has no prompts"):
        load("quickstart", ["compare=[]", "strategy={name: ncm, init_file: x}"])


def test_classes_that_a_file_was_learnt_from_are_told(tmp_path: Path) -> None:
    file = trained("vpt_deep", tmp_path / "v.safetensors")
    made = fresh("vpt_deep", init_file=str(file))
    with pytest.warns(DataWarning, match=r"init_file .* classes that are in the stream: digit four"):
        made.meet(["digit four", "digit five"])


def test_a_missing_file_is_an_error_of_the_data() -> None:
    with pytest.raises(DataError, match="no file nowhere"):
        fresh("vpt_deep", init_file="nowhere")
