"""Jobs: their order, what is done, what fails, kills, and one process at a time on a directory."""

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import torch

from data.problems import InputError
from study import jobs as jobs_module
from study.jobs import Job, Place, closure, in_order, left_to_run, needed, run_jobs

ROOT = Path(__file__).parents[1]

# stands in for a stage: notes that it ran, and ends as it is told
STAGE = """
import sys, time, pathlib
out = pathlib.Path(sys.argv[sys.argv.index("--out") + 1])
with open(out.parents[len(out.parents) - 1 - DEPTH] / "ran", "a") as f:
    f.write(" ".join(sys.argv[1:2]) + "\\n")
out.mkdir(parents=True, exist_ok=True)
if "--needs" in sys.argv:
    assert (pathlib.Path(sys.argv[sys.argv.index("--needs") + 1]) / "made").exists()
if "--sleep" in sys.argv:
    time.sleep(float(sys.argv[sys.argv.index("--sleep") + 1]))
if "--finished" in sys.argv:
    (out / "run.json").write_text('{"finished": true}')
    (out / "evaluation.json").write_text("{}")
    (out / "model.safetensors").write_text("")
if "--strong" in sys.argv:
    (out / "strong").mkdir()
    (out / "strong/model.safetensors").write_text("")
if "--cell" in sys.argv:
    (out / "summary.json").write_text("{}")
    (out / "k8-seed0").mkdir()
    if "--no-keep-weights" not in sys.argv:
        (out / "k8-seed0/model.safetensors").write_text("")
if "--code" in sys.argv:
    print("stage.py: something is wrong")
    sys.exit(int(sys.argv[sys.argv.index("--code") + 1]))
import os
(out / "made").write_text(os.environ.get("CUDA_VISIBLE_DEVICES", ""))
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A directory of jobs; stage.py and lock.py are the stand-in."""
    folder = tmp_path / "stages"
    folder.mkdir()
    text = STAGE.replace("DEPTH", str(len(tmp_path.parts) - 1))
    for name in ("stage.py", "lock.py", "train_base.py", "elicit_sft.py"):
        (folder / name).write_text(text)
    monkeypatch.setattr(jobs_module, "ROOT", folder)
    found = Place(tmp_path / "out")
    found.claim()
    return found


def ran(place: Place) -> list[str]:
    file = place.path.parent / "ran"
    return file.read_text().split() if file.exists() else []


def by_name(*jobs: Job) -> dict[str, Job]:
    return {job.name: job for job in jobs}


def run(place: Place, *jobs: Job, workers: int = 2):
    return run_jobs(list(jobs), place, workers, threads=1, devices=0)


A = Job("a", "stage.py A", 1)
B = Job("b", "stage.py B --needs @a", 1)
C = Job("c/seed0", "stage.py C --needs @b", 1)


def test_what_goes_on_from_a_model_is_run_before_the_next_model():
    jobs = [
        Job("lock1", "lock.py", 5),
        Job("sft1", "stage.py @lock1", 2),
        Job("base", "stage.py", 15),
        Job("lock2", "lock.py --weak @base", 6),
        Job("sft2", "stage.py @lock2 --writer @base", 1),
        Job("rl1", "stage.py @lock1", 3),
    ]
    found = [job.name for job in in_order(jobs, jobs)]
    assert found == ["lock1", "rl1", "sft1", "base", "lock2", "sft2"]
    assert [job.name for job in in_order(jobs[3:], jobs)] == ["rl1", "lock2", "sft2"]


def test_a_job_computes_in_the_dtype_of_the_model_that_it_goes_on_from(place, monkeypatch):
    """On another machine auto is another, and what it gave would not compare."""
    (place.path / "lock").mkdir()
    (place.path / "lock/run.json").write_text('{"compute_dtype": "float32"}')
    on = Job("sft", "elicit_sft.py --locked @lock", 1)
    for dtype, more in ((torch.float32, []), (torch.bfloat16, ["--dtype", "fp32"])):
        monkeypatch.setattr(jobs_module, "dtype_of", lambda *_, dtype=dtype: dtype)
        assert place.words(on)[5:] == more
    edit = Job("edit", "elicit_tampering.py --locked @lock", 1)
    assert "--dtype" not in place.words(edit) and "--dtype" not in place.words(A)


@pytest.mark.parametrize("given, names", [("", "010"), ("4,7", "474")])
def test_jobs_share_the_cuda_devices_in_turn(place, monkeypatch, given, names):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
    jobs = [Job(f"job{i}", "stage.py --sleep 0.5", 1) for i in range(3)]
    run_jobs(jobs, place, 3, threads=1, devices=2)
    assert [(place.folder(job.name) / "made").read_text() for job in jobs] == list(names)


def test_a_model_that_only_some_jobs_name_is_an_input_of_these(place):
    named = Job("named", "stage.py --decoys data/base/twin", 1)
    place.inputs, place.named = "x", {"data/base/twin": "1"}
    assert (place.inputs_of(A), place.inputs_of(named)) == ("x", "x-1")
    run(place, A, named)
    place.named = {"data/base/twin": "2"}
    assert place.record(A) and not place.record(named)
    assert "from other models" in run(place, named).failed["named"]


def test_what_a_job_needs():
    jobs = by_name(A, B, C, Job("ab", "stage.py --x @a/strong --y @b", 1))
    assert needed(jobs["ab"], jobs) == ["a", "b"]  # a/strong lies in a's directory, not in ab's
    assert [job.name for job in closure(["c/seed0"], jobs)] == ["a", "b", "c/seed0"]
    with pytest.raises(ValueError, match="which no job makes"):
        needed(Job("d", "stage.py --x @nothing", 1), jobs)


def test_each_runs_once_and_after_what_it_needs(place):
    outcome = run(place, A, B, C)
    assert not outcome.failed and ran(place) == ["A", "B", "C"]
    run(place, A, B, C)
    assert ran(place) == ["A", "B", "C"]  # nothing that is finished is run again


def test_a_failed_job_is_named_and_the_others_go_on(place, capsys):
    bad = Job("bad", "stage.py bad --code 2", 1)
    after = Job("after", "stage.py after --needs @bad", 1)
    outcome = run(place, bad, after, A)
    assert outcome.failed == {"bad": "stage.py: something is wrong"}
    assert outcome.left_out == ["after"]
    assert set(ran(place)) == {"bad", "A"}
    # tried again the next time
    run(place, bad, A)
    assert ran(place).count("bad") == 2 and ran(place).count("A") == 1


def test_a_lock_that_is_not_valid_is_a_result_and_one_that_broke_is_none(place):
    assert not run(place, Job("l", "lock.py l --code 1 --finished", 1)).failed
    assert run(place, Job("m", "lock.py m --code 1", 1)).failed  # what a bug ends with, too
    assert run(place, Job("n", "lock.py n --code 2 --finished", 1)).failed
    assert run(place, Job("o", "stage.py o --code 1 --finished", 1)).failed


def test_a_job_that_was_another_command_is_named_and_the_others_go_on(place):
    run(place, A)
    other = Job("a", "stage.py A --other", 1)
    assert place.record(other) is None and place.record(A)
    outcome = run(place, other, B, Job("d", "stage.py D", 1))
    assert "made by another command, `stage.py A`: move" in outcome.failed["a"]
    assert outcome.left_out == ["b"] and ran(place) == ["A", "D"]


def test_a_job_of_other_models_is_named(place):
    run(place, A)
    place.inputs = "other weights"
    assert "made from other models" in run(place, A).failed["a"]


def test_a_job_whose_directory_has_gone_is_run_again(place):
    run(place, A)
    shutil.rmtree(place.folder("a"))
    assert place.record(A) is None
    run(place, A)
    assert ran(place) == ["A", "A"]


def test_results_without_weights_are_done_until_others_need_the_weights(place):
    lock = Job("l", "lock.py L --finished", 1)
    first = Job("first", "stage.py first --x @l", 1)
    second = Job("second", "stage.py second --x @l", 1)
    run(place, lock, first)
    (place.folder("l") / "model.safetensors").unlink()
    assert place.record(lock) and not left_to_run([lock, first], place)
    assert not run(place, lock, first).failed and ran(place) == ["L", "first"]

    # trained again it could be another lock, beside what the old one was measured to do
    outcome = run(place, lock, first, second)
    assert outcome.failed.keys() == {"l"} and outcome.left_out == ["second"]
    assert "its weights are gone" in outcome.failed["l"] and ran(place) == ["L", "first"]


def test_unlock_vectors_are_weights_that_may_be_gone_like_those_of_a_lock(place):
    vectors = Job("v", "elicit_sft.py V --cell", 1)
    merge = Job("merge", "stage.py merge --x @v/k8-seed0", 1)
    assert not run(place, vectors).failed
    (place.folder("v") / "k8-seed0/model.safetensors").unlink()
    assert place.record(vectors) and not left_to_run([vectors], place)
    outcome = run(place, vectors, merge)
    assert "its weights are gone" in outcome.failed["v"] and outcome.left_out == ["merge"]
    # a cell that keeps no weights never had any
    assert not run(place, Job("c", "elicit_sft.py C --cell --no-keep-weights", 1)).failed
    assert ran(place) == ["V", "C"]


def test_a_base_whose_weights_are_gone_is_made_again_for_those_that_need_it(place):
    base = Job("base", "train_base.py base --strong", 1)
    first = Job("first", "stage.py first --x @base/strong", 1)
    second = Job("second", "stage.py second --x @base/strong", 1)
    run(place, base, first)
    assert ran(place) == ["base", "first"]
    shutil.rmtree(place.folder("base"))
    run(place, base, first)
    assert ran(place) == ["base", "first"]
    run(place, base, first, second)
    assert ran(place) == ["base", "first", "base", "second"]


def test_what_lies_in_the_repository_is_named_from_there(place, tmp_path):
    assert place.words(B)[2:] == ["--needs", f"{place.path}/a", "--out", f"{place.path}/b"]
    inside = Place(tmp_path / "stages" / "out")
    assert inside.words(B)[2:] == ["--needs", "out/a", "--out", "out/b"]


def test_minutes_left_grow_while_a_job_takes_longer_than_it_is_said_to():
    short, long, third = (Job(name, "stage.py", 10) for name in ("short", "long", "third"))
    bar = jobs_module.Bar([short, long, third], workers=1)
    assert bar.minutes_left({}) == 30
    assert bar.minutes_left({long: 4}) == 26
    bar.ended(short, 20 * 60)  # twice what it was said to take
    assert bar.minutes_left({long: 12}) == 28
    # two jobs of 10 minutes took 20 and 40: the third takes 30, and this one is to end now
    assert bar.minutes_left({long: 40}) == 30
    bar.close()


def test_the_second_on_a_directory_is_refused(place):
    with pytest.raises(InputError, match="another reproduce.py is at work"):
        Place(place.path).claim()


def test_killed_it_takes_its_jobs_with_it_and_goes_on(place, tmp_path):
    program = textwrap.dedent(f"""
        import sys
        sys.path.insert(0, {str(ROOT)!r})
        from study import jobs
        from pathlib import Path
        from study.jobs import Job, Place, run_jobs
        jobs.ROOT = Path({str(tmp_path / "stages")!r})
        place = Place(Path({str(tmp_path / "killed")!r}))
        place.claim()
        waits = Job("waits", "stage.py waits --sleep 60", 1)
        run_jobs([Job("a", "stage.py A", 1), waits], place, 1, 1, 0)
    """)
    process = subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.DEVNULL)
    deadline = time.time() + 60
    while "waits" not in ran(place) and time.time() < deadline:
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()

    # its job has ended, too: the directory is free at once
    again = Place(tmp_path / "killed")
    while True:
        try:
            again.claim()
            break
        except InputError:
            assert time.time() < deadline, "the job went on without its parent"
            time.sleep(0.05)
    assert json.loads((tmp_path / "killed/jobs/a.json").read_text())["exit"] == 0
    run(again, A, Job("w", "stage.py W", 1))
    assert ran(place) == ["A", "waits", "W"]
