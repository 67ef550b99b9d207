"""From measured units to hours and money: pure functions over the rows of the log.

Everything is scaled by raw bytes: a source of which 2 % of the bytes were measured has 50 times as many rows, seconds
and bytes out. Behind ingest, films are scaled by the seconds of those measured as well. A unit that began a worker also
built its models; of that one the phases alone count, and the rest is told as start-up, once a worker. With units of
equal kind the error is that of the mean of N units; the spread between them is told with it, as the hours if all were
like the fastest or the slowest. A stage of two pools takes as long as the slower one: decoding, or the models (or the
driver, which then writes alone).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

Row = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """What there will be: `workers` in all (None: the recipe's pools), nodes, and what an hour of each costs."""

    workers: int | None = None
    nodes: int = 1
    price_per_hour: float | None = None
    gpu_price_per_hour: float | None = None


@dataclass(frozen=True, kw_only=True)
class Pool:
    """A stage's workers, and the GPUs each one reserves.

    With `decode_workers` the stage is two pools: `workers` do the `model_phases` and the decoders all else, but for
    writing, which the driver does.
    """

    workers: int
    gpus: float
    decode_workers: int = 0
    model_phases: frozenset[str] = frozenset()


@dataclass(frozen=True, kw_only=True)
class SourceSize:
    """A source's raw bytes and ingest units, whole and measured.

    Of films `film_s` are the seconds of all, as the headers of the measured ones tell, and `measured_film` is the share
    of the measured ones' seconds that went on to the stages behind ingest.
    """

    units: int
    bytes: int
    measured_units: int
    measured_bytes: int
    film_s: float = 0.0
    measured_film: float = 1.0

    @property
    def share(self) -> float:
        return self.measured_bytes / self.bytes if self.bytes else 1.0

    def bytes_in(self, stage: str) -> float:
        """Return the raw bytes that a stage was measured on."""
        return self.measured_bytes * (1.0 if stage == "ingest" else self.measured_film)

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "share": round(self.share, 6)}


@dataclass(frozen=True, kw_only=True)
class StageEstimate:
    """One stage over all sources: what was measured of it (`measured_units`) and the whole of it.

    `bound_by` is the longest phase of its slowest workers; `decode_workers` are 0 where there is one pool.
    """

    stage: str
    measured_units: int
    units: int
    rows: int
    rows_kept: int
    bytes_written: int
    requests: int
    rows_per_s_worker: float
    bound_by: str
    startup_s: float
    workers: int
    decode_workers: int
    hours: float
    hours_between: tuple[float, float] | None
    cost: float | None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class _Measured:
    """The measured units of one stage and source; `seconds` are those at work, a worker's start-up taken out."""

    rows: Sequence[Row]
    seconds: Sequence[float]
    startup_s: float
    factor: float

    @property
    def per_row_s(self) -> list[float]:
        return [s / row["rows_in"] for row, s in zip(self.rows, self.seconds, strict=True) if row["rows_in"]]

    def whole(self, name: str) -> float:
        return self.factor * sum(float(row[name]) for row in self.rows)


@dataclass(frozen=True, kw_only=True)
class _Crew:
    """Equal processes and what they do of every unit; the `pieces` of it are handed out one by one."""

    workers: int
    pieces: int
    measured: Sequence[_Measured]

    @property
    def worker_s(self) -> float:
        return sum(one.factor * sum(one.seconds) for one in self.measured)


def estimate_stages(
    rows: Sequence[Row],
    sizes: Mapping[str, SourceSize],
    modality: Mapping[str, str],
    pools: Mapping[str, Pool],
    cluster: Cluster,
) -> list[StageEstimate]:
    """Extrapolate every stage that did something, in the order of `pools`."""
    found = []
    for stage, pool in pools.items():
        mine = [row for row in rows if row["kind"] == "unit" and row["stage"] == stage]
        by_source = {str(row["source"]): [one for one in mine if one["source"] == row["source"]] for row in mine}
        measured = [_measured(some, _factor(source, stage, sizes, modality)) for source, some in by_source.items()]
        if measured:
            found.append(_stage(stage, measured, pool, cluster))
    return found


def _factor(name: str, stage: str, sizes: Mapping[str, SourceSize], modality: Mapping[str, str]) -> float:
    """Return whole ÷ measured, by raw bytes, of a source or of what a modality's sources are together."""
    chosen = [size for source, size in sizes.items() if name in (source, modality[source])] or list(sizes.values())
    measured = sum(size.bytes_in(stage) for size in chosen)
    return sum(size.bytes for size in chosen) / measured if measured else 1.0


def _measured(rows: Sequence[Row], factor: float) -> _Measured:
    seconds, startup_s = [], 0.0
    begun: set[str] = set()
    for row in sorted(rows, key=lambda row: float(row["started"])):
        working_s = sum(row["phases_s"].values())
        is_first = row["worker"] not in begun and 0 < working_s < row["wall_s"]
        begun.add(row["worker"])
        seconds.append(working_s if is_first else row["wall_s"])
        startup_s = max(startup_s, row["wall_s"] - working_s if is_first else 0.0)
    return _Measured(
        rows=sorted(rows, key=lambda row: float(row["started"])), seconds=seconds, startup_s=startup_s, factor=factor
    )


def _stage(stage: str, measured: Sequence[_Measured], pool: Pool, cluster: Cluster) -> StageEstimate:
    units = round(sum(one.factor * len(one.rows) for one in measured))
    rows, startup_s = sum(one.whole("rows_in") for one in measured), max(one.startup_s for one in measured)
    worker_s = sum(one.factor * sum(one.seconds) for one in measured)
    crews = _crews(measured, units, round(rows), pool)
    hours, slowest = max(
        ((hours_of(crew.worker_s, crew.pieces, crew.workers, startup_s), crew) for crew in crews),
        key=lambda item: item[0],
    )
    return StageEstimate(
        stage=stage,
        measured_units=sum(len(one.rows) for one in measured),
        units=units,
        rows=round(rows),
        rows_kept=round(sum(one.whole("rows_kept") for one in measured)),
        bytes_written=round(sum(one.whole("bytes_out") for one in measured)),
        requests=round(sum(one.whole("requests") for one in measured)),
        rows_per_s_worker=round(rows / worker_s, 2) if worker_s else 0.0,
        bound_by=_bound(slowest),
        startup_s=round(startup_s, 3),
        workers=crews[0].workers,
        decode_workers=crews[1].workers if pool.decode_workers else 0,
        hours=hours,
        hours_between=_between(crews, startup_s),
        cost=_cost(hours, crews[0].workers * pool.gpus, cluster),
    )


def _crews(measured: Sequence[_Measured], units: int, rows: int, pool: Pool) -> list[_Crew]:
    """Return who does what: one crew, or those with the models (a unit's chunks go to any), decoders and driver."""
    if not pool.decode_workers:
        return [_Crew(workers=max(1, min(pool.workers, units)), pieces=units, measured=measured)]
    elsewhere = {*pool.model_phases, "write"}
    models = [_part(one, pool.model_phases) for one in measured]
    decoders = [_part(one, elsewhere, all_others=True) for one in measured]
    driver = [_part(one, {"write"}) for one in measured]
    return [
        _Crew(workers=max(1, min(pool.workers, rows)), pieces=rows, measured=models),
        _Crew(workers=max(1, min(pool.decode_workers, units)), pieces=units, measured=decoders),
        _Crew(workers=1, pieces=units, measured=driver),
    ]


def _part(whole: _Measured, phases: Collection[str], *, all_others: bool = False) -> _Measured:
    """Return what these phases took of every unit or, with `all_others`, what is left without them."""
    rows, seconds = [], []
    for row, unit_s in zip(whole.rows, whole.seconds, strict=True):
        inside_s = sum(s for name, s in row["phases_s"].items() if name in phases)
        kept = {name: s for name, s in row["phases_s"].items() if (name in phases) is not all_others}
        rows.append({**row, "phases_s": kept})
        seconds.append(unit_s - inside_s if all_others else inside_s)
    return replace(whole, rows=rows, seconds=seconds)


def hours_of(worker_s: float, units: int, workers: int, startup_s: float = 0.0) -> float:
    """Return the hours `units` equal units take: whole rounds of the workers, none less than their share."""
    rounds_s = math.ceil(units / workers) * worker_s / max(units, 1)
    return (max(worker_s / workers, rounds_s) + startup_s) / 3600


def _between(crews: Sequence[_Crew], startup_s: float) -> tuple[float, float] | None:
    """Return the hours if every unit were like its source's fastest or slowest; None where none has two units."""
    if not any(len(one.per_row_s) > 1 for one in crews[0].measured):
        return None
    ends = []
    for pick in (min, max):
        hours = []
        for crew in crews:
            worker_s = sum(pick(one.per_row_s) * one.whole("rows_in") for one in crew.measured if one.per_row_s)
            hours.append(hours_of(worker_s, crew.pieces, crew.workers, startup_s))
        ends.append(max(hours))
    return ends[0], ends[1]


def _bound(crew: _Crew) -> str:
    """Name the longest phase and its share of the phases of a crew."""
    phases: Counter[str] = Counter()
    for one in crew.measured:
        for row in one.rows:
            phases.update({name: one.factor * seconds for name, seconds in row["phases_s"].items()})
    if not phases:
        return "not measured"
    name, seconds = max(phases.items(), key=lambda item: item[1])
    return f"{name} {100 * seconds / max(sum(phases.values()), 1e-9):.0f} %"


def _cost(hours: float, gpus: float, cluster: Cluster) -> float | None:
    if cluster.price_per_hour is None and cluster.gpu_price_per_hour is None:
        return None
    per_hour = cluster.nodes * (cluster.price_per_hour or 0.0) + gpus * (cluster.gpu_price_per_hour or 0.0)
    return round(hours * per_hour, 4)
