"""A directory belongs to one stage with one set of settings, finished or not."""

import pytest

from topr.errors import RunDirectoryError
from topr.store import Manifest, begin, read_manifest, write_manifest


def finish(directory, fingerprint):
    manifest = Manifest(stage="grade", fingerprint=fingerprint, rows=1, files=())
    write_manifest(directory, manifest)
    return manifest


def test_an_unfinished_stage_goes_on_with_its_own_settings_only(tmp_path):
    assert begin(tmp_path, "grade", "b2") is None  # failed before it left anything
    assert begin(tmp_path, "grade", "a1") is None
    (tmp_path / "part-00000.parquet").touch()
    assert begin(tmp_path, "grade", "a1") is None
    with pytest.raises(RunDirectoryError, match="an unfinished grade with fingerprint a1"):
        begin(tmp_path, "grade", "b2")


def test_a_finished_stage_is_returned_to_its_own_settings_only(tmp_path):
    begin(tmp_path, "grade", "a1")
    manifest = finish(tmp_path, "a1")
    assert begin(tmp_path, "grade", "a1") == manifest == read_manifest(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["manifest.json"]
    with pytest.raises(RunDirectoryError, match="a finished grade with fingerprint a1"):
        begin(tmp_path, "grade", "b2")
