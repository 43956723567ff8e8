"""ClassNames: names of classes by class id, as state."""

import warnings

import pytest
import torch
from torch import nn

from clprompt.errors import ConfigError, DataWarning, ProtocolError
from clprompt.prompting.text import ClassNames


def named(**names: str | list[str]) -> ClassNames:
    holder = ClassNames()
    holder.add({int(key[1:]): name for key, name in names.items()})
    return holder


def test_the_first_of_several_names_is_shown() -> None:
    names = named(c3=["tench", "Tinca tinca"], c0="great dane")
    assert names.shown(3) == "tench"
    assert names.all(3) == ["tench", "Tinca tinca"]
    assert names.all(0) == ["great dane"]
    assert (3 in names, 1 in names, len(names)) == (True, False, 2)


def test_underscores_and_runs_of_spaces_are_one_space() -> None:
    assert named(c0="plug__adapter ").shown(0) == "plug adapter"


def test_the_order_in_which_names_come_changes_no_state() -> None:
    one = named(c1="a b", c0="é")
    other = named(c0="e\u0301")
    other.add({1: "a_b"})
    other.add({1: ["a b"]})
    assert torch.equal(one.utf8, other.utf8)
    assert one.utf8.dtype == torch.uint8


def test_names_of_any_number_are_loaded_as_part_of_a_state() -> None:
    saved = nn.ModuleDict({"names": named(c7=["cat", "kitty"], c0="日本")})
    loaded = nn.ModuleDict({"names": named(c0="dog")})
    loaded.load_state_dict(saved.state_dict())
    assert loaded["names"].all(7) == ["cat", "kitty"]
    assert loaded["names"].shown(0) == "日本"
    loaded.load_state_dict(nn.ModuleDict({"names": ClassNames()}).state_dict())
    assert len(loaded["names"]) == 0


@pytest.mark.parametrize("text", ["[1]", "{", "\udcff"])
def test_a_state_that_holds_no_names_is_refused(text: str) -> None:
    state = {"utf8": torch.tensor(list(text.encode(errors="surrogateescape")), dtype=torch.uint8)}
    with pytest.raises(RuntimeError, match="no names of classes"):
        ClassNames().load_state_dict(state)


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (
            {0: "crane", 4: "crane"},
            r'class 0 \("crane"\) and class 4 \("crane"\) have the same text features; tell them apart',
        ),
        ({0: "a_b", 4: ["a b", "c"]}, r'class 0 \("a b"\) and class 4 \("a b"\) have the same text features'),
        ({2: "dog"}, 'class 2 is called "cat" already, got "dog"'),
        ({3: "cat"}, r'class 2 \("cat"\) and class 3 \("cat"\) have the same'),
        ({1: " _ "}, "class 1 has an empty name"),
        ({1: []}, r"class 1 must have a name, or a list of names; got \[\]"),
        ({1: 5}, "class 1 must have a name, or a list of names; got 5"),
        ({-1: "cat"}, "by class id, 0 or more; got -1"),
        ({"cat": "cat"}, "by class id, 0 or more; got 'cat'"),
    ],
)
def test_a_refusal_leaves_the_names_as_they_were(names: dict, said: str) -> None:
    holder = named(c2="cat")
    before = holder.utf8
    with pytest.raises(ConfigError, match=said):
        holder.add(names)
    assert holder.all(2) == ["cat"]
    assert (len(holder), torch.equal(holder.utf8, before)) == (1, True)


def test_names_that_the_tower_reads_alike_are_refused() -> None:
    holder = named(c0="crane")
    with pytest.raises(ConfigError, match=r'class 0 \("crane"\) and class 1 \("Crane"\) have the same text'):
        holder.add({1: "Crane"}, read=lambda texts: [text.lower() for text in texts])
    holder.add({1: "Crane"})


def test_a_class_without_a_name_is_told_of() -> None:
    with pytest.raises(ProtocolError, match="class 5 has no name"):
        named(c2="cat").shown(5)


def test_numbers_and_wordnet_ids_draw_one_notice() -> None:
    holder = ClassNames()
    with pytest.warns(DataWarning, match='2 classes are named by a number .* first "n01440764"'):
        holder.add({0: "n01440764", 1: "7", 2: "mnist 7"})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        holder.add({3: "8"})


def test_words_draw_no_notice() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        named(c0=["seven", "7"], c1="5 o'clock")
