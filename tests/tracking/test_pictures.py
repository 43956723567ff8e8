"""After which experiences a run draws."""

import pytest
from drawing import same_picture
from matplotlib.figure import Figure
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from clprompt.tracking.pictures import draws
from clprompt.tracking.tracker import RunTracker


def drawn(experiences, up_to=None):
    return [number for number in range(1, (up_to or experiences) + 1) if draws(number, experiences)]


@pytest.mark.parametrize("experiences", [1, 7, 20])
def test_a_run_with_few_experiences_draws_after_each(experiences):
    assert drawn(experiences) == list(range(1, experiences + 1))


@pytest.mark.parametrize("experiences", [21, 30, 99, 100, 1000])
def test_a_longer_run_draws_twenty_times_and_at_the_end(experiences):
    numbers = drawn(experiences)
    assert (len(numbers), numbers[-1]) == (20, experiences)


def test_pictures_are_evenly_spread():
    assert drawn(100) == list(range(5, 101, 5))
    assert drawn(30)[:5] == [2, 3, 5, 6, 8]


def test_a_stream_of_unknown_length_is_drawn_at_growing_distances():
    assert drawn(None, 350) == [*range(1, 11), *range(20, 101, 10), 200, 300]


GROUPS = [[0]] + [[]] * 49


def evaluation(experience):
    return {
        "kind": "evaluation",
        "experience": experience,
        "when": "experience",
        "accuracy": 0.5,
        "groups": [0.5] + [None] * 49,
        "confusion": [[0, 0, 1]],
    }


def run_of(folder, experiences, numbers, known=True):
    """The scalars and pictures that TensorBoard reads of a run, tag by tag, by the steps of each."""
    asked = []

    def figure(number):
        asked.append(number)
        return Figure()

    with same_picture():
        known_length = experiences if known else None
        tracker = RunTracker(folder, ["zero"], GROUPS, experiences=known_length)
        for number in range(1, experiences + 1):
            if number in numbers:  # a process that was killed here goes on as another one
                sizes = tracker.flush()
                tracker.record(evaluation(number - 1))
                tracker.diagnostics(number, {"drawing": Figure()})
                tracker.flush()
                tracker = RunTracker(folder, ["zero"], GROUPS, sizes, experiences=known_length)
            tracker.diagnostics(number, {"opening": Figure(), "nothing": lambda: None})
            tracker.record(evaluation(number - 1))
            tracker.diagnostics(number, {"share": 0.5, "drawing": lambda n=number: figure(n)})
        tracker.finish()
        tracker.close()
    kinds = ("scalars", "images", "tensors")
    reader = EventAccumulator(str(folder), size_guidance=dict.fromkeys(kinds, 0)).Reload()
    tags = reader.Tags()
    shown = {tag: [event.step for event in reader.Images(tag)] for tag in tags["images"]}
    shown["per_class_accuracy"] = [event.step for event in reader.Tensors("per_class_accuracy")]
    scalars = {tag: [event.step for event in reader.Scalars(tag)] for tag in tags["scalars"]}
    return asked, shown, {tag: steps for tag, steps in scalars.items() if not tag.startswith("final/")}


TAGS = ["accuracy_curves", "accuracy_matrix", "confusion_matrix", "drawing", "opening", "per_class_accuracy"]


@pytest.mark.parametrize("killed", [(), (24, 25, 41)], ids=["straight", "killed"])
def test_all_that_draws_draws_after_the_same_experiences_and_numbers_come_after_all(tmp_path, killed):
    asked, shown, scalars = run_of(tmp_path, 50, killed)
    numbers = drawn(50)
    assert 25 in numbers and 24 not in numbers  # noqa: PT018
    assert asked == numbers
    assert shown == dict.fromkeys(TAGS, numbers)
    assert scalars["share"] == scalars["accuracy/average"] == list(range(1, 51))
    assert (tmp_path / "figures" / "drawing.png").exists()
    assert not (tmp_path / "figures" / "nothing.png").exists()


def test_the_end_of_a_stream_of_unknown_length_is_drawn_too(tmp_path):
    _, shown, _ = run_of(tmp_path, 12, (), known=False)
    own = list(range(1, 11))
    assert shown == {tag: own if tag in ("drawing", "opening") else [*own, 12] for tag in TAGS}
