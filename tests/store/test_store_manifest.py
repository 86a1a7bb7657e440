"""A directory belongs to one stage with one set of settings, and to one process at a time."""

import errno
import os
import signal
import subprocess
import sys

import pytest

from topr.errors import RunDirectoryError
from topr.store import Manifest, begin, lock, locked, read_manifest, write_manifest


def begun(directory, fingerprint):
    with begin(directory, "grade", fingerprint) as done:
        return done


def finish(directory, fingerprint):
    manifest = Manifest(stage="grade", fingerprint=fingerprint, rows=1, files=())
    write_manifest(directory, manifest)
    return manifest


def test_an_unfinished_stage_goes_on_with_its_own_settings_only(tmp_path):
    assert begun(tmp_path, "b2") is None  # failed before it left anything
    assert begun(tmp_path, "a1") is None
    (tmp_path / "part-00000.parquet").touch()
    assert begun(tmp_path, "a1") is None
    with pytest.raises(RunDirectoryError, match="an unfinished grade with fingerprint a1"):
        begun(tmp_path, "b2")


def test_a_finished_stage_is_returned_to_its_own_settings_only(tmp_path):
    begun(tmp_path, "a1")
    manifest = finish(tmp_path, "a1")
    assert begun(tmp_path, "a1") == manifest == read_manifest(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "manifest.json"]
    with pytest.raises(RunDirectoryError, match="a finished grade with fingerprint a1"):
        begun(tmp_path, "b2")


def test_a_stage_is_refused_while_another_process_is_at_it(tmp_path):
    holding = "from topr.store import begin; from pathlib import Path; import sys, time\n"
    holding += (
        "with begin(Path(sys.argv[1]), 'grade', 'a1'): print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", holding, str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout.readline() == "held\n"
        try:
            with pytest.raises(
                RunDirectoryError, match=rf"process is running.*process {other.pid} "
            ):
                begun(tmp_path, "a1")
        finally:
            os.kill(other.pid, signal.SIGKILL)
    assert begun(tmp_path, "a1") is None


def test_a_finished_stage_is_read_whoever_holds_it_and_where_nothing_can_be_written(tmp_path):
    manifest = finish(tmp_path, "a1")
    with locked(tmp_path):
        assert begun(tmp_path, "a1") == manifest
    (tmp_path / ".lock").unlink()
    assert begun(tmp_path, "a1") == manifest
    assert not (tmp_path / ".lock").exists()


def test_an_error_lets_go_of_the_directory(tmp_path):
    with pytest.raises(ValueError, match="of the stage"), begin(tmp_path, "grade", "a1"):
        raise ValueError("of the stage")
    assert begun(tmp_path, "a1") is None


def test_a_file_system_without_locks_is_warned_of(tmp_path, monkeypatch, caplog):
    def none(file, *, blocking):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(lock, "lock_descriptor", none)
    assert begun(tmp_path, "a1") is None
    assert "has no locks" in caplog.text
