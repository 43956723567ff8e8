"""Accuracy, online and label sets behind one face, on numbers worked out by hand."""

import json
import math

import numpy as np
import pytest

from clprompt.errors import DataError
from clprompt.metrics.calibration import calibration_error
from clprompt.metrics.measure import (
    MEASURES,
    Accuracy,
    LabelSets,
    Online,
    measure_behind,
    measure_in,
    measure_named,
    measure_of,
    of_trained_head,
    summarise,
    trained_head_summary,
)

NAMES = ["ant", "bee", "cat"]
GROUPS = [[0, 1], [2]]
SEEN = np.array([0, 1, 2])

# four samples of the classes 0, 1, 2, 2; the second is taken for class 0
LOGITS = np.array([[3.0, 1, 0], [2, 1, 0], [0, 1, 5], [0, 0, 1]])
LABELS = np.array([0, 1, 2, 2])
ROWS = [np.array([0, 1]), np.array([2, 3])]

# class 0: its positive ranks first of three; class 1: its positive ranks second; class 2 has none
SCORES = np.array([[4.0, 2, -9], [1, 1, -9], [0, -1, -9]])
HOT = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 0]])


def accuracies(measure="accuracy", **more):
    """The records of two experiences; the first group falls from 0.9 to 0.5."""
    common = {"kind": "evaluation", "when": "experience", "measure": measure, **more}
    return [
        {**common, "experience": 0, "accuracy": 0.9, "groups": [0.9, None], "confusion": [[0, 0, 2]]},
        {
            **common,
            "experience": 1,
            "accuracy": 0.6,
            "groups": [0.5, 0.7],
            "confusion": [[0, 0, 1], [0, 2, 1], [1, 1, 3]],
        },
    ]


def onlines():
    """The same with two periodic evaluations."""
    periodic = [
        {
            "kind": "evaluation",
            "when": "anytime",
            "measure": "online",
            "accuracy": a,
            "nominal": n,
            "samples": n,
        }
        for n, a in ((10, 0.4), (20, 0.8))
    ]
    return [*periodic, *accuracies("online", nominal=None)]


def label_sets():
    common = {"kind": "evaluation", "when": "experience", "measure": "label_sets", "images": 4}
    rest = {"CF1_macro": 0.25, "OP": 0.5, "OR": 0.125, "OF1": 0.2}
    return [
        {
            **common,
            "experience": 0,
            "mAP": 0.5,
            "CF1": 0.4,
            **rest,
            "classes": [0, 1],
            "ap": [0.5, None],
            "f1": [0.4, 0],
        },
        {
            **common,
            "experience": 1,
            "mAP": 0.3,
            "CF1": 0.1,
            **rest,
            "classes": [0, 1, 2],
            "ap": [0.2, None, 0.4],
            "f1": [0.1, 0, 0.2],
        },
    ]


def few_shots():
    """The same as of a few-shot stream whose base are the classes 0 and 1."""
    parts = ({"base_accuracy": 0.9, "novel_accuracy": None}, {"base_accuracy": 0.5, "novel_accuracy": 0.7})
    return [{**record, **part} for record, part in zip(accuracies("few_shot"), parts, strict=True)]


RECORDS = {
    "accuracy": accuracies,
    "online": onlines,
    "few_shot": few_shots,
    "label_sets": label_sets,
}

# ------------------------------------------------------------------------------------------------ choosing


@pytest.mark.parametrize(
    ("targets", "online", "name"),
    [
        (LABELS, False, "accuracy"),
        (LABELS, True, "online"),
        (HOT, False, "label_sets"),
        (HOT, True, "label_sets"),
    ],
)
def test_targets_and_protocol_choose_the_measure(targets, online, name):
    assert measure_of(targets, online).name == name


@pytest.mark.parametrize("name", MEASURES)
def test_records_name_their_measure(name):
    assert measure_in(RECORDS[name]()).name == name


@pytest.mark.parametrize("name", MEASURES)
def test_records_from_before_measures_were_named_are_told_by_their_keys(name):
    records = [{k: v for k, v in record.items() if k != "measure"} for record in RECORDS[name]()]
    assert measure_in(records).name == name


def test_records_without_an_evaluation_are_measured_by_accuracy():
    assert measure_in([{"kind": "train", "step": 1}]).name == "accuracy"


@pytest.mark.parametrize("name", MEASURES)
def test_the_metrics_of_results_tell_their_measure(name):
    assert measure_behind([summarise(RECORDS[name]())]).name == name


def test_an_unknown_measure_is_one_line_with_those_there_are():
    with pytest.raises(DataError, match='"f2"; known: accuracy, online, few_shot, label_sets') as caught:
        measure_named("f2")
    assert "\n" not in str(caught.value)


# ------------------------------------------------------------------------------------------------ targets


def test_accuracy_takes_no_multi_hot_targets():
    with pytest.raises(DataError, match="not defined on multi-hot targets"):
        Accuracy().checked(HOT)


@pytest.mark.parametrize("targets", [LABELS, 2 * HOT])
def test_label_sets_take_zeros_and_ones_alone(targets):
    with pytest.raises(DataError, match="must be 0 or 1"):
        LabelSets().checked(targets)


def test_a_label_shows_its_class():
    assert Accuracy().shows(LABELS, [0, 2]).tolist() == [True, False, True, True]


def test_a_label_set_shows_each_of_its_classes():
    hot = np.array([[1, 1, 0], [0, 1, 0], [0, 0, 0]])
    assert LabelSets().shows(hot, [0, 7]).tolist() == [True, False, False]
    assert LabelSets().shows(hot, []).tolist() == [False] * 3


# ------------------------------------------------------------------------------------------------ score


@pytest.mark.parametrize("measure", [Accuracy(), Online()])
def test_accuracy_is_scored_over_samples_and_by_group(measure):
    record = measure.score(LOGITS, LABELS, SEEN, ROWS).record()
    assert record == {
        "measure": measure.name,
        "accuracy": 0.75,
        "groups": [0.5, 1.0],
        "confusion": [[0, 0, 1], [1, 0, 1], [2, 2, 2]],
        "calibration_error": calibration_error(LOGITS, LABELS),
    }
    assert json.loads(json.dumps(record)) == record


def test_accuracy_of_nothing_is_not_defined():
    evaluation = Accuracy().score(np.empty((0, 3)), LABELS[:0], SEEN[:0], [np.arange(0)])
    assert math.isnan(evaluation.accuracy)
    assert evaluation.groups == [None]


def test_label_sets_are_scored_over_the_seen_classes():
    record = LabelSets().score(SCORES, HOT, np.array([0, 1])).record()
    assert record["measure"] == "label_sets"
    assert record["classes"] == [0, 1]
    assert record["ap"] == [1.0, 0.5]
    assert record["mAP"] == 0.75
    # above 0.8 are logits above log(4) = 1.386: one right label of class 0, one wrong label of class 1
    assert record["f1"] == [1.0, 0.0]
    assert record["CF1"] == 0.5
    assert (record["OP"], record["OR"], record["OF1"]) == (0.5, 0.5, 0.5)
    assert record["images"] == 3


def test_the_threshold_decides_what_is_predicted():
    record = LabelSets(threshold=0.6).score(SCORES, HOT, np.array([0, 1])).record()
    assert record["OR"] == 1.0


def test_label_sets_of_nothing_are_not_defined():
    record = LabelSets().score(np.empty((0, 3)), HOT[:0], np.array([0])).record()
    assert record["mAP"] is None
    assert record["ap"] == [None]


def test_a_class_that_no_target_names_has_no_average_precision():
    record = LabelSets().score(np.c_[SCORES, SCORES[:, :1]], HOT, np.array([0, 3])).record()
    assert record["ap"][0] == 1.0
    assert math.isnan(record["ap"][1])


# ------------------------------------------------------------------------------------------------ scalars


@pytest.mark.parametrize("measure", [Accuracy(), Online()])
def test_accuracy_charts_groups_average_and_forgetting(measure):
    records = accuracies()
    first = measure.scalars(records[:1], records[0], GROUPS)
    assert first == {"accuracy/group_01": 0.9, "accuracy/average": 0.9}
    second = measure.scalars(records, records[1], GROUPS)
    assert second == pytest.approx(
        {
            "accuracy/group_01": 0.5,
            "accuracy/group_02": 0.7,
            "accuracy/average": 0.6,
            "accuracy/forgetting": 0.4,
        }
    )


def test_a_periodic_evaluation_charts_its_accuracy():
    records = onlines()
    assert Online().scalars(records[:1], records[0], GROUPS) == {"anytime/accuracy": 0.4}


def test_label_sets_chart_map_by_group_and_over_the_seen_classes():
    records = label_sets()
    assert LabelSets().scalars(records, records[1], GROUPS) == {
        "mAP/group_01": 0.2,
        "mAP/group_02": 0.4,
        "mAP/seen": 0.3,
        "multi_label/CF1": 0.1,
        "multi_label/CF1_macro": 0.25,
        "multi_label/OF1": 0.2,
        "multi_label/OP": 0.5,
        "multi_label/OR": 0.125,
    }


# ------------------------------------------------------------------------------------------------ summary


def test_accuracy_is_summed_up_from_its_matrix():
    assert Accuracy().summarise(accuracies()) == pytest.approx(
        {
            "average_accuracy": 0.6,
            "average_incremental_accuracy": 0.75,
            "average_incremental_accuracy_by_samples": 0.75,
            "forgetting": 0.4,
            "nonnegative_forgetting": 0.4,
            "backward_transfer": -0.4,
            "last_accuracy": 0.6,
        }
    )


def test_an_online_run_is_summed_up_by_its_protocol_and_by_accuracy():
    # class 0 falls from 1 to 1/2; class 1 was never right before the last session
    summary = Online().summarise(onlines())
    protocol = {"A_auc": 0.6, "A_avg": 0.75, "A_last": 0.6, "F_last": 0.5}
    assert summary == pytest.approx(protocol | Accuracy().summarise(accuracies()))


def test_label_sets_are_summed_up_by_last_and_average_map():
    summary = LabelSets().summarise(label_sets())
    assert summary == pytest.approx(
        {
            "mAP_last": 0.3,
            "mAP_average": 0.4,
            "CF1": 0.1,
            "CF1_macro": 0.25,
            "OF1": 0.2,
            "OP": 0.5,
            "OR": 0.125,
        }
    )


@pytest.mark.parametrize("name", MEASURES)
def test_columns_and_deciding_metrics_are_among_the_summary(name):
    summary = summarise(RECORDS[name]())
    assert {*MEASURES[name].columns, *MEASURES[name].deciding} <= summary.keys()


@pytest.mark.parametrize("name", MEASURES)
def test_what_a_report_shows_is_among_the_columns(name):
    assert list(MEASURES[name].reported) == [
        k for k in MEASURES[name].columns if k in MEASURES[name].reported
    ]


def test_the_headline_of_accuracy_is_average_and_forgetting():
    assert Accuracy().headline(summarise(accuracies())) == "average accuracy 60.0 %, forgetting 40.0 points"


def test_the_headline_of_an_online_run_is_of_its_protocol():
    text = Online().headline({"A_auc": 0.5, "A_avg": 0.25, "A_last": math.nan})
    assert text == "A_auc 50.0, A_avg 25.0, A_last -, F_last - (%)"


def test_the_headline_of_label_sets_is_all_columns():
    text = LabelSets().headline(summarise(label_sets()))
    assert text == "last mAP 30.0, average mAP 40.0, CF1 10.0, OF1 20.0 (%)"


# ------------------------------------------------------------------------------------------ matrix and curves


def test_the_matrix_of_accuracy_is_by_experience_and_group():
    np.testing.assert_array_equal(Online().matrix(onlines(), GROUPS), [[0.9, math.nan], [0.5, 0.7]])


def test_the_matrix_of_label_sets_ends_with_all_seen_classes():
    matrix = LabelSets().matrix(label_sets(), GROUPS)
    np.testing.assert_allclose(matrix, [[0.5, math.nan, 0.5], [0.2, 0.4, 0.3]])


def test_a_report_draws_average_accuracy_and_forgetting():
    curves = Accuracy().curves(accuracies())
    np.testing.assert_allclose(curves["average_accuracy"], [0.9, 0.6])
    np.testing.assert_allclose(curves["forgetting"], [math.nan, 0.4])


def test_a_report_draws_map_of_label_sets():
    assert {name: values.tolist() for name, values in LabelSets().curves(label_sets()).items()} == {
        "mAP": [0.5, 0.3]
    }


@pytest.mark.parametrize("name", MEASURES)
def test_every_curve_has_titles(name):
    assert MEASURES[name].curve_titles.keys() == MEASURES[name]().curves(RECORDS[name]()).keys()


@pytest.mark.parametrize("name", ["accuracy", "label_sets"])
def test_without_the_protocol_there_is_no_anytime_curve(name):
    assert MEASURES[name]().anytime(RECORDS[name]()) == {}


def test_the_anytime_curve_is_by_the_samples_at_which_it_was_due():
    assert Online().anytime(onlines()) == {10: 0.4, 20: 0.8}


def test_the_zero_shot_line_of_an_online_run_is_by_the_samples_at_which_sessions_ended():
    first, second = accuracies("online")
    names = {"zero_shot": [0.5], "zero_shot_base": 0.6}
    records = [*onlines(), first | {"samples": 15, "names": names}, second | {"samples": 20}]
    assert Online().anytime_reference(records) == {15: 0.6}


# ------------------------------------------------------------------------------------------------ tables


def test_accuracy_leaves_four_tables():
    assert Accuracy().tables(accuracies(), NAMES, GROUPS) == {
        "accuracy_matrix.csv": [["after_experience", "group_1", "group_2"], [1, 0.9, None], [2, 0.5, 0.7]],
        "per_class_accuracy.csv": [
            ["class", "name", "group", "samples", "correct", "accuracy"],
            [0, "ant", 1, 2, 1, 0.5],
            [1, "bee", 1, 3, 3, 1.0],
            [2, "cat", 2, 0, 0, None],
        ],
        "confusion_matrix.csv": [
            ["true class \\ predicted class", *NAMES],
            ["ant", 1, 0, 1],
            ["bee", 0, 3, 0],
            ["cat", 0, 0, 0],
        ],
        "per_class_history.csv": [
            [
                "class",
                "name",
                "group",
                "after_experience",
                "samples",
                "correct",
                "accuracy",
                "taken_for",
                "times",
            ],
            [0, "ant", 1, 1, 2, 2, 1.0, None, 0],
            [0, "ant", 1, 2, 2, 1, 0.5, "cat", 1],
            [1, "bee", 1, 2, 3, 3, 1.0, None, 0],
        ],
    }


def test_templates_that_were_scored_alone_leave_a_table_with_the_best_first():
    names = {"zero_shot": [0.5, 0.5], "own": [None, None], "templates": {"a {}": 0.25, "the {}": 0.75}}
    tables = Accuracy().tables(accuracies(names=names), NAMES, GROUPS)
    assert tables["zero_shot_templates.csv"] == [["template", "accuracy"], ["the {}", 0.75], ["a {}", 0.25]]


def test_label_sets_leave_two_tables():
    assert LabelSets().tables(label_sets(), NAMES, GROUPS) == {
        "map_matrix.csv": [
            ["after_experience", "seen", "group_1", "group_2"],
            [1, 0.5, 0.5, None],
            [2, 0.3, 0.2, 0.4],
        ],
        "per_class_ap.csv": [
            ["class", "name", "group", "ap", "f1"],
            [0, "ant", 1, 0.2, 0.1],
            [1, "bee", 1, None, 0.0],
            [2, "cat", 2, 0.4, 0.2],
        ],
    }


@pytest.mark.parametrize("name", MEASURES)
def test_without_an_evaluation_there_is_no_table(name):
    assert MEASURES[name]().tables([{"kind": "train"}], NAMES, GROUPS) == {}


def test_the_note_of_an_evaluation_leaves_out_classes_without_samples():
    note = Accuracy().notes(accuracies()[1], NAMES, GROUPS)["per_class_accuracy"]
    assert [row[1] for row in note] == ["name", "ant", "bee"]


# ---------------------------------------------------------------------------------------- the trained head


def with_trained_head(records):
    """The records as evaluations write them where something else answered; of both heads the same figures."""
    both = []
    for record in records:
        shared = {"kind", "when", "experience", "measure", "nominal", "samples", "classes", "images"}
        figures = {key: value for key, value in record.items() if key not in {*shared, "confusion"}}
        if "confusion" in record:
            cells = record["confusion"]
            figures["per_class"] = [
                [c, sum(n for t, _, n in cells if t == c), sum(n for t, p, n in cells if t == p == c)]
                for c in sorted({t for t, *_ in cells})
            ]
        both.append({**record, "trained_head": figures})
    return both


@pytest.mark.parametrize("name", MEASURES)
def test_the_trained_head_has_all_the_metrics_that_a_run_has(name):
    records = RECORDS[name]()
    np.testing.assert_equal(trained_head_summary(with_trained_head(records)), summarise(records))


@pytest.mark.parametrize("name", MEASURES)
def test_a_trained_head_changes_no_metric_of_the_run(name):
    np.testing.assert_equal(summarise(with_trained_head(RECORDS[name]())), summarise(RECORDS[name]()))


def test_without_another_head_there_are_no_figures_of_the_trained_one():
    assert of_trained_head(accuracies()) == []
    assert trained_head_summary(accuracies()) is None


def test_an_evaluation_that_the_trained_head_answered_counts_as_its_own():
    first, second = accuracies()
    _, also = with_trained_head([first, second])
    also["trained_head"] |= {"groups": [0.1, 0.3], "accuracy": 0.2}
    summary = trained_head_summary([first, also])
    assert summary["average_accuracy"] == pytest.approx(0.2)
    assert summary["forgetting"] == pytest.approx(0.8)


@pytest.mark.parametrize("name", MEASURES)
@pytest.mark.parametrize("odd", [{}, 5, None, [0.5]])
def test_a_trained_head_without_its_figures_is_refused(name, odd):
    *others, last = with_trained_head(RECORDS[name]())
    with pytest.raises(DataError, match="the trained_head of an evaluation of experience 1"):
        trained_head_summary([*others, {**last, "trained_head": odd}])
