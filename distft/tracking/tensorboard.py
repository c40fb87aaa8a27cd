"""The TensorBoard mirror: the only file that imports tensorboard."""

from typing import Any

from distft.tracking import metrics
from distft.tracking.seam import Row, RunInfo, Summary

FOLDER = "tensorboard"


class TensorboardMirror:
    """Rows as scalars `train/...` and `eval/...` under `<run>/tensorboard`.

    Written through tensorboard's own event writer: torch's SummaryWriter would make one event of each number.
    """

    def __init__(self) -> None:
        self._writer: Any = None

    def start(self, info: RunInfo) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        folder = info.run_dir / FOLDER
        mirrored = folder.is_dir() and any(folder.iterdir())
        self._writer = EventFileWriter(str(folder))
        if mirrored:  # TensorBoard forgets what earlier files hold from this step on
            purge_step = info.first_step + 1 if info.first_step else 0
            self._writer.add_event(Event(step=purge_step, session_log=SessionLog(status=SessionLog.START)))
        else:
            for row in metrics.read(info.run_dir / metrics.FILE):
                self._add(row)
        self._writer.flush()

    def log(self, row: Row) -> None:
        self._add(row)
        self._writer.flush()  # a killed process must not lose steps that a checkpoint holds

    def close(self, summary: Summary) -> None:
        self._writer.close()

    def _add(self, row: Row) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary as Scalars

        values = [
            Scalars.Value(tag=f"{row['split']}/{key}", simple_value=float("nan") if value is None else float(value))
            for key, value in row.items()
            if key not in ("step", "split", "time") and (value is None or isinstance(value, int | float))
        ]
        self._writer.add_event(Event(wall_time=row["time"], step=row["step"], summary=Scalars(value=values)))
