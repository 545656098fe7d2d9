"""An exported network: photos in, answers out, as :class:`racnn.engine.predictor.Predictor` gives them, by onnxruntime."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from racnn.data.image_io import read_reduced
from racnn.data.listing import check_places, iter_photos
from racnn.data.shapes import resized_shape
from racnn.errors import CheckpointError, ConfigError, DataError
from racnn.evaluation.hedge import Caution, sure_answers
from racnn.portable.answers import Prediction, answer_dict, best, load_photos, sure_dict
from racnn.portable.onnx_bytes import read_about

SUFFIX = ".onnx"
AHEAD = 4  # photos that are read before it is their turn, for each thread that reads


@dataclass
class PortableNetwork:
    """A network from an .onnx file and what is needed to use it.

    Attributes:
        path: Path of the file.
        session: Of onnxruntime.
        about: What the file says of itself, see :func:`racnn.export.onnx_file.export_onnx`.
        class_names: In the order of the probabilities.
        scales: How many times it looks.
        fused: Whether its looks are joined by a fusion layer, or by the mean of their probabilities.
        early_exit: The least probability to stop at after each look but the last, where that was chosen before the export.
        caution: The levels of the classes and how careful to be, where they were asked for.
    """

    path: Path
    session: Any
    about: dict[str, Any]
    class_names: list[str]
    scales: int
    fused: bool
    early_exit: tuple[float, ...] | None
    caution: Caution | None = None

    def predict(self, photos: Any, *, top: int = 3, why: bool = False) -> Any:
        """Say what is on photos, one by one, as :meth:`racnn.engine.predictor.Predictor.predict` does.

        Args:
            photos: A photo, as a path, a PIL image or a uint8 array [h, w, 3] or [h, w]; or a folder, or a list of photos
                and folders.
            top: How many answers.
            why: Say also where each look sees the answer rather than the second most probable class.

        Returns:
            A :class:`racnn.portable.answers.Prediction`; of a folder or list one for each photo, in order.

        Raises:
            DataError: A photo cannot be read or is no such array, or a folder holds none.
            ConfigError: ``why`` of a network of one class.
        """
        if why:
            self.refuse_why()
        loaded, several = load_photos(photos)
        found = [self._look(path, photo, top, why) for path, photo in loaded]
        return found if several else found[0]

    def refuse_why(self) -> None:
        """Refuse a network that cannot be asked why.

        Raises:
            ConfigError: It knows one class.
        """
        if len(self.class_names) < 2:
            raise ConfigError("why: the network knows one class, and there is no other to tell it from")

    def _look(self, path: Path | None, photo: np.ndarray, top: int, why: bool) -> Prediction:
        numbers = range(1, self.scales + 1)
        names = ["probabilities", *(f"look_{i}" for i in numbers), *(f"view_{i}" for i in numbers)]
        names += ["boxes"] if self.scales > 1 else []
        names += [f"why_{i}" for i in numbers] if why else []
        found = self._run(photo[None], names)
        looks = {f"scale_{i}": best(found[f"look_{i}"][0], self.class_names) for i in numbers}
        looks |= {"fused": best(found["probabilities"][0], self.class_names)} if self.fused else {}
        sure = None if self.caution is None else sure_answers(self.caution, found["probabilities"])
        return Prediction(
            photo=photo,
            path=path,
            top=best(found["probabilities"][0], self.class_names, max(top, 2) if why else top),
            boxes_xyxy=found["boxes"][0].tolist() if self.scales > 1 else [],
            views=[found[f"view_{i}"][0] for i in numbers],
            looks=looks,
            sure=None if sure is None else sure[0],
            why=[found[f"why_{i}"][0] for i in numbers] if why else None,
        )

    def stream(
        self,
        places: Iterable[Path],
        *,
        workers: int = 0,
        early: Sequence[float] | None = None,
        top: int = 3,
    ) -> Iterator[dict[str, Any]]:
        """Say what is on photos, one after another, as :meth:`racnn.engine.predictor.Predictor.stream` does.

        Args:
            places: Photos, and folders of photos.
            workers: Threads that read photos ahead.
            early: See ``early_exit``; None: all looks at every photo.
            top: How many answers.

        Raises:
            DataError: A path does not exist, or a folder holds no photos.
        """
        places = list(places)
        check_places(places)
        return self._rows(places, max(1, workers), early, top)

    def _rows(
        self, places: Sequence[Path], workers: int, early: Sequence[float] | None, top: int
    ) -> Iterator[dict[str, Any]]:
        source = self.about["source"]
        needed = partial(resized_shape, source["resize"], source["size"])
        waiting: deque[tuple[Path, Future[tuple[np.ndarray, tuple[int, int]]]]] = deque()
        with ThreadPoolExecutor(workers) as pool:
            paths = iter_photos(places)
            try:
                for path in paths:
                    waiting.append((path, pool.submit(read_reduced, path, needed)))
                    if len(waiting) > AHEAD * workers:
                        yield self._row(*waiting.popleft(), early, top)
                while waiting:
                    yield self._row(*waiting.popleft(), early, top)
            finally:
                for _, future in waiting:
                    future.cancel()

    def _row(
        self,
        path: Path,
        reading: Future[tuple[np.ndarray, tuple[int, int]]],
        early: Sequence[float] | None,
        top: int,
    ) -> dict[str, Any]:
        row: dict[str, Any] = {"photo": str(path)}
        try:
            photo, (height, width) = reading.result()
        except DataError as error:
            return row | {"error": str(error)}
        names = ["probabilities", "looks", *(["boxes"] if self.scales > 1 else [])]
        found = self._run(photo[None], names, early)
        given = int(found["looks"][0])
        boxes = found["boxes"][0, : given - 1] if self.scales > 1 else np.zeros((0, 4))
        boxes = boxes * np.tile(
            [width / photo.shape[1], height / photo.shape[0]], 2
        )  # it was decoded smaller
        row |= answer_dict(best(found["probabilities"][0], self.class_names, top), boxes.tolist())
        sure = None if self.caution is None else sure_answers(self.caution, found["probabilities"])
        return row | sure_dict(None if sure is None else sure[0])

    def _run(
        self, photos: np.ndarray, names: Sequence[str], early: Sequence[float] | None = None
    ) -> dict[str, np.ndarray]:
        """Return outputs of the graph by name, and run no more of it than they need."""
        import onnxruntime

        given: dict[str, np.ndarray] = {"photos": np.ascontiguousarray(photos)}
        if early is not None:
            given["stop"] = np.asarray(early, np.float32)
        options = onnxruntime.RunOptions()
        options.only_execute_path_to_fetches = True
        try:
            found = dict(zip(names, self.session.run(list(names), given, options), strict=True))
        except Exception as error:  # onnxruntime raises nearly anything
            raise CheckpointError(f"{self.path}: cannot be run: {_first_line(error)}") from None
        if not np.isfinite(found.get("probabilities", 0.0)).all():
            raise CheckpointError(f"{self.path}: its answers are not finite")
        return found


def open_onnx(path: Path, *, device: str = "cpu", levels: bool | None = False) -> PortableNetwork:
    """Return the network of an .onnx file that ``racnn export`` wrote.

    Args:
        path: The file.
        device: 'cpu', or 'auto', which is the same.
        levels: Answer also at the level that is sure, as it was chosen before the export; None: where it was.

    Raises:
        CheckpointError: It is missing, damaged or no such file.
        ConfigError: onnxruntime is not installed, or another device was asked for.
        DataError: No levels were chosen before the export.
    """
    if device not in ("auto", "cpu"):
        raise ConfigError(f"--device {device}: .onnx files run on the CPU")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from None
    about = read_about(content, str(path))
    try:
        import onnxruntime
    except ImportError:
        raise ConfigError(f"{path}: .onnx files need onnxruntime: pip install onnxruntime") from None
    options = onnxruntime.SessionOptions()
    threads = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    options.intra_op_num_threads = int(threads) if threads.isdecimal() else 0
    options.log_severity_level = 4  # what is wrong is said below
    try:
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        caution = about["caution"]
        network = PortableNetwork(
            path=path,
            session=session,
            about=about,
            class_names=list(about["class_names"]),
            scales=int(about["scales"]),
            fused=bool(about["fused"]),
            early_exit=None if about["early_exit"] is None else tuple(about["early_exit"]),
            caution=None if caution is None or levels is False else _caution(caution),
        )
        _check_outputs(network)
    except Exception as error:  # onnxruntime raises nearly anything
        raise CheckpointError(f"{path}: cannot be used: {_first_line(error)}") from None
    if levels and caution is None:
        raise DataError(
            f"levels: {path}: none were chosen before the export; `racnn evaluate CHECKPOINT --levels TAXONOMY`, then export anew"
        )
    return network


def describe_onnx(path: Path) -> dict[str, Any]:
    """Return what an .onnx file says of itself, see :func:`racnn.export.onnx_file.export_onnx`.

    Raises:
        CheckpointError: It is missing, damaged or no such file.
    """
    try:
        return read_about(path.read_bytes(), str(path))
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from None


def _caution(found: dict[str, Any]) -> Caution:
    groups = tuple(tuple(each) for each in found["groups"])
    return Caution(**{**found, "names": tuple(found["names"]), "groups": groups})


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def _check_outputs(network: PortableNetwork) -> None:
    shapes = {each.name: each.shape for each in network.session.get_outputs()}
    if shapes["probabilities"][1] != len(network.class_names):
        raise ValueError("the classes are not those of the graph")
    wanted = [*(f"{kind}_{i}" for kind in ("look", "view") for i in range(1, network.scales + 1)), "looks"]
    if not set(wanted) <= set(shapes):
        raise ValueError("the looks are not those of the graph")
