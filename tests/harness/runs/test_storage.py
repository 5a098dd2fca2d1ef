"""Where a run can be stored."""

import pytest

from harness.cli import main
from harness.runs.errors import RunError
from harness.runs.run import Run


@pytest.mark.parametrize(
    ("place", "reason"),
    [
        ("s3://AKIA:s3cr3t@b/x", r"s3://…@b/x has credentials in it"),
        ("s3://AKIA:s3/cr3t@b/x", r"s3://…@b/x has credentials in it"),
        ("s3://AKIA:s3cr3t", r"s3://…@… has credentials in it"),
        ("hdfs://b/x", r"hdfs:// is not a bucket; a run is in a folder or at s3, "),
    ],
)
def test_places_that_are_refused(place, reason, capsys):
    with pytest.raises(RunError, match=reason) as refused:
        Run(place)
    with pytest.raises(SystemExit):
        main(["status", place])
    assert not any(part in f"{refused.value} {capsys.readouterr()}" for part in ("s3cr3t", "cr3t", "AKIA"))
