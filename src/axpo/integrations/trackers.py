"""TensorBoard, Weights & Biases, trackio, MLflow behind `axpo.protocols.Tracker`: the only file that imports them."""

from __future__ import annotations

import html
import importlib
import importlib.util
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from axpo.errors import MissingExtraError
from axpo.protocols import TrackedRun, Tracker

if TYPE_CHECKING:
    from PIL.Image import Image

PROJECT = "axpo"
"""Name of the project or experiment unless the tracker's own environment variable says otherwise."""

Level = Literal["warning", "error"]
Status = Literal["finished", "failed", "interrupted"]
Rows = Sequence[Sequence[str | float]]


def build_tracker(name: str) -> Tracker:
    """One of `TRACKERS` by its name. Raises `MissingExtraError` when its package is not installed.

    The package is only looked for: it is imported by `start`, in a thread of its own.
    """
    package, build = TRACKERS[name]
    if importlib.util.find_spec(package) is None:
        raise MissingExtraError(f"run.trackers: {name} needs {package}, not installed: pip install 'axpo[{name}]'")
    return build()


def _load(module: str) -> Any:
    return importlib.import_module(module)


class TensorBoardTracker:
    """Event files in the run's folder, under `tensorboard`: `tensorboard --logdir RUN`."""

    def start(self, run: TrackedRun) -> str | None:
        """Write from `run.first_step` on; what was written of later steps is marked as void."""
        purge_step = run.first_step if run.known_id is not None else None
        writer = _load("torch.utils.tensorboard").SummaryWriter
        self._writer = writer(str(run.folder / "tensorboard"), purge_step=purge_step)
        self._writer.add_text("config", f"```\n{json.dumps(run.config, indent=1)}\n```", run.first_step)
        return run.id

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """One scalar a metric."""
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def log_table(self, step: int, name: str, columns: Sequence[str], rows: Rows) -> None:
        """A Markdown table under Text."""
        lines = [columns, ["---"] * len(columns), *rows]
        text = "\n".join("|" + "|".join(_markdown_cell(cell) for cell in line) + "|" for line in lines)
        self._writer.add_text(name, text, step)

    def log_images(self, step: int, name: str, images: Sequence[tuple[str, Image]]) -> None:
        """One series a position; captions have no place there."""
        import numpy as np

        for index, (_, image) in enumerate(images):
            self._writer.add_image(f"{name}/{index}", np.asarray(image), step, dataformats="HWC")

    def log_alarm(self, step: int, *, name: str, level: Level, text: str) -> None:
        """A text; the curve is the metric `alarm/NAME`."""
        self._writer.add_text(f"alarm/{name}", f"{level}: {html.escape(text)}", step)

    def finish(self, status: Status) -> None:
        """Close the files."""
        self._writer.close()


class WandbTracker:
    """Weights & Biases. `WANDB_PROJECT`, `WANDB_ENTITY`, `WANDB_MODE=offline` and the like are obeyed."""

    def start(self, run: TrackedRun) -> str | None:
        """Our own id is its id, so a run that died at once is found again."""
        self._wandb = _load("wandb")
        self._run = self._wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            id=run.known_id or run.id,
            name=run.folder.name,
            dir=str(run.folder),
            config=dict(run.config),
            resume="allow",
            reinit="create_new",
            settings=self._wandb.Settings(console="off", silent=True),
        )
        # its own counter refuses to go back, which a resumed run must
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")
        return self._run.id

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """All numbers at once."""
        self._run.log({"step": step, **metrics})

    def log_table(self, step: int, name: str, columns: Sequence[str], rows: Rows) -> None:
        """A table."""
        table = self._wandb.Table(columns=list(columns), data=[list(row) for row in rows], allow_mixed_types=True)
        self._run.log({"step": step, name: table})

    def log_images(self, step: int, name: str, images: Sequence[tuple[str, Image]]) -> None:
        """One series a position: a panel of pictures wants them all of one size."""
        shown = {
            f"{name}/{index}": self._wandb.Image(image, caption=text) for index, (text, image) in enumerate(images)
        }
        self._run.log({"step": step, **shown})

    def log_alarm(self, step: int, *, name: str, level: Level, text: str) -> None:
        """An alert, sent on as the user's settings there say."""
        levels = self._wandb.AlertLevel
        self._run.alert(
            title=f"{name} at step {step}", text=text, level=levels.ERROR if level == "error" else levels.WARN
        )

    def finish(self, status: Status) -> None:
        """Upload the rest."""
        self._run.finish(exit_code=0 if status == "finished" else 1)


class TrackioTracker:
    """trackio: a local data base (`trackio show`), or the Space that `TRACKIO_SPACE_ID` names."""

    def start(self, run: TrackedRun) -> str | None:
        """It finds a run by its name, so the name holds our id."""
        self._trackio = _load("trackio")
        name = run.known_id or f"{run.folder.name}-{run.id}"
        self._run = self._trackio.init(
            project=os.environ.get("TRACKIO_PROJECT", PROJECT),
            name=name,
            config=dict(run.config),
            resume="allow",
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )
        return name

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """All numbers at once."""
        self._run.log(dict(metrics), step=step)

    def log_table(self, step: int, name: str, columns: Sequence[str], rows: Rows) -> None:
        """A table."""
        table = self._trackio.Table(columns=list(columns), data=[list(row) for row in rows])
        self._run.log({name: table}, step=step)

    def log_images(self, step: int, name: str, images: Sequence[tuple[str, Image]]) -> None:
        """One series a position."""
        shown = {
            f"{name}/{index}": self._trackio.Image(image, caption=caption)
            for index, (caption, image) in enumerate(images)
        }
        self._run.log(shown, step=step)

    def log_alarm(self, step: int, *, name: str, level: Level, text: str) -> None:
        """An alert."""
        levels = self._trackio.AlertLevel
        self._run.alert(
            title=f"{name} at step {step}", text=text, level=levels.ERROR if level == "error" else levels.WARN
        )

    def finish(self, status: Status) -> None:
        """Write the rest."""
        self._run.finish()


class MlflowTracker:
    """MLflow. `MLFLOW_TRACKING_URI` and `MLFLOW_EXPERIMENT_NAME` are obeyed."""

    def start(self, run: TrackedRun) -> str | None:
        """Its server chooses the id."""
        self._mlflow = _load("mlflow")
        self._client = self._mlflow.MlflowClient()
        if run.known_id is not None:
            self._id = run.known_id
            self._client.update_run(self._id, status="RUNNING")
            return self._id
        experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        known = self._client.get_experiment_by_name(experiment)
        experiment_id = known.experiment_id if known is not None else self._client.create_experiment(experiment)
        self._id = self._client.create_run(experiment_id, run_name=run.folder.name).info.run_id
        self._client.log_dict(self._id, dict(run.config), "config.json")
        return self._id

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """In one request. Its names have no `@`: `pass@1` is `pass_at_1` there."""
        now_ms = int(1000 * time.time())
        build = self._mlflow.entities.Metric
        named = [build(_mlflow_name(name), float(value), now_ms, step) for name, value in metrics.items()]
        self._client.log_batch(self._id, metrics=named)

    def log_table(self, step: int, name: str, columns: Sequence[str], rows: Rows) -> None:
        """An artifact a step."""
        data = {column: [row[index] for row in rows] for index, column in enumerate(columns)}
        self._client.log_table(self._id, data, f"{_mlflow_name(name)}-{step:06d}.json")

    def log_images(self, step: int, name: str, images: Sequence[tuple[str, Image]]) -> None:
        """One series a position."""
        for index, (_, image) in enumerate(images):
            self._client.log_image(self._id, image, key=f"{_mlflow_name(name)}/{index}", step=step)

    def log_alarm(self, step: int, *, name: str, level: Level, text: str) -> None:
        """A tag with its latest words."""
        self._client.set_tag(self._id, f"alarm.{name}", f"{level} at step {step}: {text}")

    def finish(self, status: Status) -> None:
        """Say how it ended."""
        states = {"finished": "FINISHED", "failed": "FAILED", "interrupted": "KILLED"}
        self._client.set_terminated(self._id, status=states[status])


TRACKERS: Mapping[str, tuple[str, Callable[[], Tracker]]] = {
    "tensorboard": ("tensorboard", TensorBoardTracker),
    "wandb": ("wandb", WandbTracker),
    "trackio": ("trackio", TrackioTracker),
    "mlflow": ("mlflow", MlflowTracker),
}
"""Name in `run.trackers`, which is that of the extra, -> package and tracker."""


def _markdown_cell(value: str | float) -> str:
    text = f"{value:.4g}" if isinstance(value, float) else html.escape(str(value), quote=False)
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("\n", "<br>")


def _mlflow_name(name: str) -> str:
    return "".join(c if c.isalnum() or c in "_-. /" else "_" for c in name.replace("@", "_at_"))
