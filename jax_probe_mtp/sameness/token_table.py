"""Writes a row for every token of a file of outputs, as JSON lines or, where the file's name ends so, as Parquet."""

import importlib.util
import json
import os
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np

from jax_probe_mtp.files.whole_files import partial_path
from jax_probe_mtp.sameness.output import Examined

PARQUET = ".parquet"
ROWS = 20_000  # of Parquet that are in memory at a time
COLUMNS = (
    "id",
    "sample",
    "position",
    "token",
    "best",
    "margin",
    "rank",
    "logprob",
    "probability",
    "entropy",
    "ambiguous",
)


class TokenTable:
    """A table that has its name only when it is whole.

    Each row is a token of an output: its record's `id` (as text in Parquet) and `sample`, its `position` from 0, the `token`,
    the model's own choice `best`, `margin` in nats, `rank` from 0, `logprob`, `probability` and `entropy` at temperature 1, and
    whether it is `ambiguous`.

    Raises:
      ValueError: if Parquet is asked for and pyarrow is missing.
    """

    def __init__(self, path: Path) -> None:
        """Opens a file beside `path`."""
        self._path, self._partial = path.resolve(), partial_path(path.resolve())
        self._is_parquet = path.suffix == PARQUET
        check_table(path)
        self._file: IO[str] | None = None
        self._writer: Any = None
        self._rows: list[dict[str, Any]] = []

    def __enter__(self) -> "TokenTable":
        if self._is_parquet:
            import pyarrow as pa
            import pyarrow.parquet as pq

            kinds = [pa.string(), pa.int32(), pa.int32(), pa.int32(), pa.int32(), pa.float32(), pa.int32()]
            kinds += [pa.float32()] * 3 + [pa.bool_()]
            self._schema = pa.schema(list(zip(COLUMNS, kinds, strict=True)))
            self._writer = pq.ParquetWriter(self._partial, self._schema)
        else:
            self._file = self._partial.open("w", encoding="utf-8")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        try:
            try:
                if kind is None:
                    self._write()
            finally:
                for file in (self._writer, self._file):
                    if file is not None:
                        file.close()
            if kind is None:
                os.replace(self._partial, self._path)
        except OSError as failure:
            reason = f"{self._path} cannot be written ({failure.strerror}); free some space or name another."
            raise OSError(reason) from None
        finally:
            self._partial.unlink(missing_ok=True)

    def add(self, found: Examined) -> None:
        """Adds the tokens of an output that could be compared."""
        if found.choices is None or found.choices.given is None:
            return
        scores, ids = found.choices.given, found.output.token_ids
        margins = np.asarray(found.choices.best_score_BA) - np.asarray(found.choices.given_score_BA)
        for place, best in enumerate(found.choices.best_BA.tolist()):
            logprob = float(scores.own.logprob[place])
            margin = float(margins[place])
            values = (
                str(found.output.prompt.id) if self._is_parquet else found.output.prompt.id,
                found.output.prompt.sample,
                place,
                ids[place],
                best,
                margin if np.isfinite(margin) else None,
                int(scores.rank[place]),
                logprob if np.isfinite(logprob) else None,
                float(np.exp(logprob)),
                float(scores.own.entropy[place]),
                bool(found.is_ambiguous[place]) if found.is_ambiguous is not None else False,
            )
            self._rows.append(dict(zip(COLUMNS, values, strict=True)))
        if len(self._rows) >= ROWS:
            self._write()

    def _write(self) -> None:
        if self._is_parquet:
            import pyarrow as pa

            self._writer.write_table(pa.Table.from_pylist(self._rows, schema=self._schema))
        elif self._file is not None:
            self._file.writelines(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in self._rows)
        self._rows.clear()


def check_table(path: Path) -> None:
    """Finds out before anything runs whether the table can be written; raises a ValueError where not."""
    if path.suffix == PARQUET and importlib.util.find_spec("pyarrow") is None:
        raise ValueError(f"{path.name} needs pyarrow: pip install 'jax-probe-mtp[parquet]', or name a .jsonl file.")
