"""Any batch of a run can be drawn again from the seed, the experience and the epoch alone."""

import os
import random
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from clprompt.data import DataBundle, ImageSource, datasets_for
from clprompt.data.loading import Epochs, fixed_batches, image_stream, subset, training_batches
from clprompt.strategies.linear_probe import LinearProbeModel
from clprompt.testing.bench import tiny_model, tiny_vit


class Noisy:
    """Images that are their index plus noise from every global random state; targets and ids beside them."""

    def __init__(self, count=23):
        self.count = count

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        noise = [torch.rand(()).item(), np.random.rand(), random.random()]  # noqa: NPY002
        return torch.full((3, 2, 2), float(index)) + torch.tensor(noise)[:, None, None] / 2, index % 5, index


class Plain(Noisy):
    """The same without noise."""

    random_transform = False

    def __getitem__(self, index):
        return torch.full((3, 2, 2), float(index)), index % 5, index


def epoch(dataset=None, *, seed=0, experience=0, epoch=0, batch_size=5, **more):
    """The batches of an epoch as (images, targets, ids)."""
    dataset = Noisy() if dataset is None else dataset
    return list(
        training_batches(
            dataset, seed=seed, experience=experience, epoch=epoch, batch_size=batch_size, **more
        )
    )


def ids(batches):
    return [batch[2].tolist() for batch in batches]


def order(batches):
    return [i for batch in ids(batches) for i in batch]


def assert_equal(some, others):
    assert len(some) == len(others)
    for one, other in zip(some, others, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def global_states():
    return str((torch.get_rng_state().tolist(), np.random.get_state(), random.getstate()))  # noqa: NPY002


def test_an_epoch_visits_every_sample_once():
    batches = epoch()
    assert [len(batch) for batch in ids(batches)] == [5, 5, 5, 5, 3]
    assert sorted(order(batches)) == list(range(23))
    assert order(batches) != list(range(23))


def test_the_order_and_the_augmentation_are_functions_of_seed_experience_and_epoch():
    torch.manual_seed(1)
    first = epoch(seed=4, experience=2, epoch=3)
    torch.manual_seed(2)
    np.random.seed(2)  # noqa: NPY002
    random.seed(2)
    assert_equal(epoch(seed=4, experience=2, epoch=3), first)


@pytest.mark.parametrize("other", [{"seed": 1}, {"experience": 1}, {"epoch": 1}])
def test_another_seed_experience_or_epoch_gives_another_order_and_other_noise(other):
    def by_id(batches):
        return {int(i): image for images, _, batch in batches for image, i in zip(images, batch, strict=True)}

    here, there = epoch(), epoch(**other)
    assert ids(here) != ids(there)
    noise = by_id(here), by_id(there)
    assert not any(torch.equal(noise[0][i], noise[1][i]) for i in range(23))


def test_the_order_does_not_depend_on_the_batch_size():
    assert order(epoch(batch_size=4)) == order(epoch(batch_size=7))


@pytest.mark.parametrize("skip", [0, 1, 4, 5])
def test_an_epoch_entered_in_the_middle_is_the_rest_of_the_whole_one(skip):
    assert_equal(epoch(skip=skip), epoch()[skip:])


@pytest.mark.parametrize("skip", [0, 2])
def test_loader_processes_change_nothing(skip):
    assert_equal(epoch(workers=2, skip=skip), epoch()[skip:])


class Loaded(Plain):
    """Items that tell which process made them."""

    def __getitem__(self, index):
        return torch.zeros(3, 2, 2), os.getpid(), index


def test_an_experience_keeps_its_loader_processes_over_its_epochs():
    epochs = Epochs(Loaded(), seed=0, experience=0, batch_size=5, workers=1)
    makers = [{int(pid) for batch in epochs.epoch(number) for pid in batch[1]} for number in range(2)]
    assert makers[0] == makers[1]
    assert os.getpid() not in makers[0]


@pytest.mark.parametrize("workers", [0, 1])
def test_epochs_of_one_loader_are_those_of_loaders_of_their_own(workers):
    epochs = Epochs(Noisy(), seed=3, experience=2, batch_size=5, workers=workers)
    next(iter(epochs.epoch(0)))  # left early
    for number, skip in ((0, 1), (1, 0)):
        alone = epoch(seed=3, experience=2, epoch=number, skip=skip)
        assert_equal(list(epochs.epoch(number, skip)), alone)


@pytest.mark.parametrize("workers", [0, 1])
def test_loading_leaves_the_global_random_states_alone(workers):
    before = global_states()
    epoch(workers=workers)
    list(fixed_batches(Noisy(), [[0, 1], [2]], workers))
    list(image_stream(Noisy(), 10, workers))
    assert global_states() == before


def test_two_samples_of_a_batch_get_different_noise():
    images = epoch(subset(Noisy(), [3, 3, 3]))[0][0]
    assert len({image[0, 0, 0].item() for image in images}) == 3
    noise = images[0, :, 0, 0] - 3
    assert len(set(noise.tolist())) == 3  # nor do the three global states share one


def test_data_in_its_final_order_is_not_shuffled():
    assert order(epoch(shuffle=False)) == list(range(23))


def test_a_subset_says_whether_its_transform_is_random():
    assert subset(Noisy(), [1]).random_transform
    assert not subset(Plain(), [1]).random_transform
    assert ids(epoch(subset(Plain(), np.array([7, 3])), shuffle=False)) == [[7, 3]]


def test_fixed_batches_come_as_they_are_given_and_always_the_same():
    batches = [[4, 2], [0], [9, 9, 1]]
    assert ids(fixed_batches(Noisy(), batches)) == batches
    assert_equal(list(fixed_batches(Noisy(), batches)), list(fixed_batches(Noisy(), batches, workers=2)))


def test_the_image_stream_gives_all_images_once_in_order():
    images = list(image_stream(Plain(), 10))
    assert [len(batch) for batch in images] == [10, 10, 3]
    assert torch.cat(images)[:, 0, 0, 0].tolist() == list(range(23))


def test_multi_hot_targets_come_as_one_tensor():
    labels = torch.eye(4)
    data = [(torch.zeros(3, 2, 2), labels[i % 4]) for i in range(6)]
    images, targets = epoch(data, batch_size=6)[0]
    assert images.shape == (6, 3, 2, 2)
    assert targets.shape == (6, 4)


# ------------------------------------------------------------------ bytes


@pytest.fixture(scope="module")
def model():
    return tiny_model(LinearProbeModel, tiny_vit(depth=1, width=8))


def bundle(augment, load):
    source = ImageSource(load=load, targets=np.arange(9) % 3)
    return DataBundle("bytes", source, source, ["a", "b", "c"], augment)


def loaded(images, model):
    """The batches of an epoch as the loader gives them, and as the model takes them."""
    batches = [batch[0] for batch in epoch(images, batch_size=4)]
    return {batch.dtype for batch in batches}, [(model.placed(batch),) for batch in batches]


PIXELS = torch.randint(0, 256, (9, 3, 20, 20), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


@pytest.mark.parametrize("augment", ["none", "standard"])
def test_bytes_that_travel_become_the_floats_that_would_have_travelled(model, augment):
    train, _, test = datasets_for(bundle(augment, PIXELS.__getitem__), model.backbone)
    for images in (train, test):
        formats, floats = loaded(images, model)
        assert formats == {torch.float32}
        images.send_bytes(model.backbone)
        formats, from_bytes = loaded(images, model)
        assert formats == {torch.uint8}
        assert_equal(from_bytes, floats)


def test_an_image_of_floats_is_normalised_as_the_bytes_beside_it(model):
    train, *_ = datasets_for(
        bundle("none", lambda i: PIXELS[i] if i % 2 else PIXELS[i].float() / 255), model.backbone
    )
    _, floats = loaded(train, model)
    train.send_bytes(model.backbone)
    _, mixed = loaded(train, model)
    assert_equal(mixed, floats)


def test_images_normalised_otherwise_than_the_backbone_has_it_travel_as_floats(model):
    train, *_ = datasets_for(bundle("none", PIXELS.__getitem__), model.backbone)
    other = SimpleNamespace(inputs=replace(model.backbone.inputs, mean=(0.1, 0.2, 0.3)))
    train.send_bytes(other)
    assert loaded(train, model)[0] == {torch.float32}
