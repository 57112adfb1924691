"""Records survive JSON."""

from __future__ import annotations

import json

import pytest
from hypothesis import given

from axpo.codec import from_json, to_json
from axpo.errors import RecordError
from axpo.types import ContinuationGroup, ImageRef, ResamplePlan, RolloutGroup
from records import Step, steps


@given(steps())
def test_a_step_comes_back_equal(step: Step) -> None:
    for record_type, records in (
        (RolloutGroup, step.groups),
        (ResamplePlan, (step.plan,)),
        (ContinuationGroup, step.continuation_groups),
    ):
        for record in records:
            assert from_json(record_type, json.loads(json.dumps(to_json(record)))) == record


@pytest.mark.parametrize("value", [{"sha256": "0" * 64}, {"sha256": "0" * 64, "width": 1}, [], None, {"x": 1}])
def test_a_record_with_other_fields_is_refused(value: object) -> None:
    with pytest.raises(RecordError, match="ImageRef"):
        from_json(ImageRef, value)
