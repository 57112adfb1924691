"""Each tracker, for real, without a network: what was logged is found there again, a resumed run goes on in it."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from axpo.diagnostics.health import Alarm
from axpo.integrations.trackers import TRACKERS, build_tracker
from axpo.integrations.tracking import Tracking
from synthetic_run import write_run

# Warnings of other people's packages are not ours to fix.
pytestmark = [pytest.mark.filterwarnings("ignore")]

ALARM = Alarm(name="truncation", level="warning", step=2, text="Half of them | <b>.", advice="Look.")


@dataclass(kw_only=True)
class Found:
    """What a tracker holds of a run."""

    values: dict[str, dict[int, float]]
    tables: set[str]
    num_pictures: int
    alarm: str
    num_runs: int


def find_in_tensorboard(folder: Path) -> Found:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"), size_guidance={"tensors": 0, "images": 0})
    events.Reload()
    tags = events.Tags()
    [alarm] = events.Tensors("alarm/truncation/text_summary")
    texts = {tag.removesuffix("/text_summary") for tag in tags["tensors"]}
    return Found(
        values={tag: {event.step: event.value for event in events.Scalars(tag)} for tag in tags["scalars"]},
        tables={text for text in texts if text.endswith("_table")},
        num_pictures=len(tags["images"]),
        alarm=alarm.tensor_proto.string_val[0].decode(),
        num_runs=1,
    )


def log_records(data: bytes) -> Iterator[bytes]:
    """Records of a LevelDB log behind 7 bytes of its own: blocks of 32 KiB, 7 bytes before each part of a record."""
    position, record = 7, b""
    while position + 7 <= len(data):
        if 32768 - position % 32768 < 7:
            position += 32768 - position % 32768
            continue
        length, kind = int.from_bytes(data[position + 4 : position + 6], "little"), data[position + 6]
        record += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield record
            record = b""


def find_in_wandb(folder: Path) -> Found:
    from wandb.proto import wandb_internal_pb2 as records

    found = Found(values={}, tables=set(), num_pictures=0, alarm="", num_runs=0)
    ids: set[str] = set()
    for path in sorted((folder / "wandb").glob("offline-run-*/*.wandb")):
        for data in log_records(path.read_bytes()):
            record = records.Record()
            record.ParseFromString(data)
            ids |= {record.run.run_id} - {""}
            found.alarm = record.alert.text or found.alarm
            line = {tuple(item.nested_key): json.loads(item.value_json) for item in record.history.item}
            for (key, *inner), value in line.items():
                if inner == ["_type"]:
                    found.tables |= {key} if value == "table-file" else set()
                    found.num_pictures += value == "image-file"
                elif not inner and not key.startswith("_") and key != "step":
                    found.values.setdefault(key, {})[line["step",]] = value
    found.num_runs = len(ids)
    return found


def find_in_trackio(folder: Path) -> Found:
    from trackio.sqlite_storage import SQLiteStorage

    names = SQLiteStorage.get_runs("axpo")
    found = Found(values={}, tables=set(), num_pictures=0, alarm="", num_runs=len(names))
    for line in SQLiteStorage.get_logs("axpo", names[0]):
        for key, value in line.items():
            if isinstance(value, dict):
                found.tables |= {key} if value["_type"] == "trackio.table" else set()
                found.num_pictures += value["_type"] == "trackio.image"
            elif key not in ("step", "timestamp"):
                found.values.setdefault(key, {})[line["step"]] = value
    [alert] = SQLiteStorage.get_alerts("axpo", names[0])
    found.alarm = alert["text"]
    return found


def find_in_mlflow(folder: Path) -> Found:
    from mlflow import MlflowClient

    client = MlflowClient()
    experiment = client.get_experiment_by_name("axpo")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    run = runs[0]
    assert run.info.status == "FINISHED"
    histories = {key: client.get_metric_history(run.info.run_id, key) for key in run.data.metrics}
    tables = {artifact.path for artifact in client.list_artifacts(run.info.run_id, "eval")}
    pictures = [artifact.path for artifact in client.list_artifacts(run.info.run_id, "images")]
    return Found(
        values={
            key.replace("_at_", "@"): {metric.step: metric.value for metric in history}
            for key, history in histories.items()
        },
        tables={table.removesuffix("-000002.json") for table in tables},
        num_pictures=sum(path.endswith(".png") for path in pictures),
        alarm=run.data.tags["alarm.truncation"],
        num_runs=len(runs),
    )


FIND: dict[str, Callable[[Path], Found]] = {
    "tensorboard": find_in_tensorboard,
    "wandb": find_in_wandb,
    "trackio": find_in_trackio,
    "mlflow": find_in_mlflow,
}


@pytest.fixture(params=TRACKERS)
def name(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A tracker whose package is there, set to write into a folder of the test."""
    package, _ = TRACKERS[request.param]
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed: pip install 'axpo[{request.param}]'")
    if request.param == "trackio":
        monkeypatch.setattr("trackio.sqlite_storage.TRACKIO_DIR", tmp_path / "trackio")
        for module in ("trackio.utils", "trackio.media.utils", "trackio.media.media"):
            monkeypatch.setattr(f"{module}.MEDIA_DIR", tmp_path / "trackio/media", raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    for variable in ("WANDB_PROJECT", "TRACKIO_PROJECT", "MLFLOW_EXPERIMENT_NAME", "TRACKIO_SPACE_ID"):
        monkeypatch.delenv(variable, raising=False)
    return request.param


def test_what_is_logged_is_found_and_a_resumed_run_goes_on_in_it(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "run"
    write_run(folder, num_steps=2, num_questions=4, eval_steps=(2,))
    config = {"run": {"seed": 0, "trackers": [name]}, "model": {"path": "x"}}

    def track(first_step: int) -> Tracking:
        return Tracking(
            {name: build_tracker(name)}, folder=folder, config=config, first_step=first_step, close_timeout_s=120
        )

    with track(1) as tracking:
        tracking.on_step(1, {"train/loss": 0.5, "rollout/count": 8, "train/kl": None}, [])
        tracking.on_step(2, {"train/loss": 0.25, "alarm/truncation": 1}, [ALARM])
        tracking.on_eval(2, {"eval/pass@1": 0.75})
        tracking.on_step(3, {"train/loss": 99.0}, [])  # of a start that dies before its checkpoint
    with track(3) as tracking:
        tracking.on_step(3, {"train/loss": 0.125}, [])
        tracking.on_step(4, {"train/loss": 0.0625}, [])
    assert [record.getMessage() for record in caplog.records if record.name.startswith("axpo")] == []

    found = FIND[name](folder)
    assert found.num_runs == 1
    assert found.values["train/loss"] == {1: 0.5, 2: 0.25, 3: 0.125, 4: 0.0625}
    assert found.values["rollout/count"] == {1: 8}
    assert found.values["eval/pass@1"] == {2: 0.75}
    assert "train/kl" not in found.values
    assert found.tables == {"eval/questions_table", "eval/samples_table"}
    assert found.num_pictures >= 4
    assert "Look." in found.alarm
