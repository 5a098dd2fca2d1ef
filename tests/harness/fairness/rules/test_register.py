"""The register of rules, and a run without findings."""

import pytest

from harness.fairness import rules


def test_there_are_26_rules_each_with_a_requirement_and_a_reason():
    found = rules.all_rules()
    assert [rule.id for rule in found] == [f"FAIR-{n:02}" for n in range(1, 27)]
    for rule in found:
        assert rule.severity in ("E", "W", "E/W")
        assert rule.title
        assert len(rule.reason) > 40, f"{rule.id} gives no reason"
        assert set(rule.over) <= set(rules.SUBJECTS)


def test_a_clean_run_has_no_finding(clean_run, ledger_of):
    planned = [record.trial for record in clean_run]
    assert rules.over_records(clean_run, (), planned, ledger_of(clean_run)) == ()
    table = rules.Table("glyphs/test_resnet", records=tuple(clean_run))
    assert rules.over_tables([table]) == ()


def test_no_records_no_finding():
    assert rules.over_records(()) == ()


def test_a_finding_begins_with_its_rule_and_names_its_records(make_clean):
    (finding,) = [f for f in rules.over_records([make_clean()]) if f.rule == "FAIR-11"]
    assert finding.sentence.startswith("FAIR-11 ")
    assert finding.records == (make_clean().id,)


def test_a_rule_over_an_unknown_subject_is_refused():
    with pytest.raises(ValueError, match="did you mean 'records'"):
        rules.rule("FAIR-99", "E", over="record")
