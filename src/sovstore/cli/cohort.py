"""A synthetic cohort for ``sovstore demo``: four tables with the columns of the OMOP CDM 5.4, the same on every run.

Nobody in it exists, and no statistics of a real population went into it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

_SEED = 20260101
PERSONS = 20_000
_VISITS = 200_000
_CONDITIONS = 300_000
_MEASUREMENTS = 2_000_000
#: Files that the measurements are spread over.
_PARTS = 4
_EHR = 32817
_MALE, _FEMALE = 8507, 8532
SYSTOLIC = 3004249
#: Concept, unit, its concept, LOINC code, mean and standard deviation.
_MEASURED = (
    (SYSTOLIC, "mm[Hg]", 8876, "8480-6", 128.0, 15.0),
    (3025315, "kg", 9529, "29463-7", 74.0, 14.0),
    (3004410, "%", 8554, "4548-4", 5.7, 0.8),
    (3016723, "mg/dL", 8840, "2160-0", 0.9, 0.2),
)
_DIAGNOSED = ((201826, "E11.9"), (320128, "I10"), (317009, "J45.9"), (4329847, "I21.9"), (255848, "J18.9"))
_VISITED = ((9202, "outpatient"), (9201, "inpatient"), (9203, "emergency"))


def write_cohort(folder: Path) -> dict[str, pa.Table]:
    """Write the tables as Parquet files into a folder, and return them.

    Parameters
    ----------
    folder : Path
        An empty folder.

    Returns
    -------
    dict
        Table by name, as pyarrow reads it back.
    """
    rng = np.random.default_rng(_SEED)
    born = rng.integers(1925, 2020, PERSONS)
    tables = {
        "person": _person(rng, born),
        "visit_occurrence": _visit_occurrence(rng),
        "condition_occurrence": _condition_occurrence(rng),
        "measurement": _measurement(rng, born),
    }
    for name, table in tables.items():
        if name != "measurement":
            # Without compression anybody can find the names of columns and the patients in it, as the demo shows.
            pq.write_table(table, folder / f"{name}.parquet", compression="none" if name == "person" else "snappy")
            continue
        (folder / name).mkdir()
        rows = -(-table.num_rows // _PARTS)
        for part in range(_PARTS):
            pq.write_table(table.slice(part * rows, rows), folder / name / f"part-{part}.parquet")
    return tables


def _table(columns: dict[str, Any], rows: int) -> pa.Table:
    """Return a table; a number or text alone fills its column, and a type alone leaves it empty."""
    arrays = {}
    for name, value in columns.items():
        if isinstance(value, pa.DataType):
            arrays[name] = pa.nulls(rows, value)
        elif isinstance(value, int | str):
            arrays[name] = pa.array([value]).take(pa.array(np.zeros(rows, np.int8)))
        else:
            arrays[name] = pa.array(value)
    return pa.table(arrays)


def _chosen(values: list[Any], index: Any) -> pa.Array:
    return pa.array(values).take(pa.array(index))


def _labels(prefix: str, numbers: Any) -> Any:
    """Return a text per number, such as PAT-000042."""
    return [f"{prefix}-{number:06d}" for number in numbers]


def _dates(rng: np.random.Generator, rows: int) -> Any:
    return np.datetime64("2015-01-01") + rng.integers(0, 4000, rows).astype("timedelta64[D]")


def _person(rng: np.random.Generator, born: Any) -> pa.Table:
    sex = rng.integers(0, 2, PERSONS)
    ids = np.arange(1, PERSONS + 1)
    columns = {
        "person_id": ids,
        "gender_concept_id": _chosen([_MALE, _FEMALE], sex),
        "year_of_birth": born,
        "month_of_birth": rng.integers(1, 13, PERSONS),
        "day_of_birth": rng.integers(1, 29, PERSONS),
        "birth_datetime": pa.timestamp("us"),
        "race_concept_id": 0,
        "ethnicity_concept_id": 0,
        "location_id": rng.integers(1, 96, PERSONS),
        "provider_id": pa.int64(),
        "care_site_id": rng.integers(1, 40, PERSONS),
        "person_source_value": _labels("PAT", rng.permutation(PERSONS)),
        "gender_source_value": _chosen(["M", "F"], sex),
        "gender_source_concept_id": 0,
        "race_source_value": pa.string(),
        "race_source_concept_id": 0,
        "ethnicity_source_value": pa.string(),
        "ethnicity_source_concept_id": 0,
    }
    return _table(columns, PERSONS)


def _visit_occurrence(rng: np.random.Generator) -> pa.Table:
    kind = rng.choice(len(_VISITED), _VISITS, p=[0.75, 0.15, 0.10])
    start = _dates(rng, _VISITS)
    end = start + np.where(kind == 1, rng.integers(1, 15, _VISITS), 0).astype("timedelta64[D]")
    columns = {
        "visit_occurrence_id": np.arange(1, _VISITS + 1),
        "person_id": rng.integers(1, PERSONS + 1, _VISITS),
        "visit_concept_id": _chosen([concept for concept, _ in _VISITED], kind),
        "visit_start_date": start,
        "visit_start_datetime": start.astype("datetime64[us]"),
        "visit_end_date": end,
        "visit_end_datetime": end.astype("datetime64[us]"),
        "visit_type_concept_id": _EHR,
        "provider_id": rng.integers(1, 900, _VISITS),
        "care_site_id": rng.integers(1, 40, _VISITS),
        "visit_source_value": _chosen([source for _, source in _VISITED], kind),
        "visit_source_concept_id": 0,
        "admitted_from_concept_id": 0,
        "admitted_from_source_value": pa.string(),
        "discharged_to_concept_id": 0,
        "discharged_to_source_value": pa.string(),
        "preceding_visit_occurrence_id": pa.int64(),
    }
    return _table(columns, _VISITS)


def _condition_occurrence(rng: np.random.Generator) -> pa.Table:
    kind = rng.choice(len(_DIAGNOSED), _CONDITIONS, p=[0.25, 0.40, 0.20, 0.05, 0.10])
    start = _dates(rng, _CONDITIONS)
    columns = {
        "condition_occurrence_id": np.arange(1, _CONDITIONS + 1),
        "person_id": rng.integers(1, PERSONS + 1, _CONDITIONS),
        "condition_concept_id": _chosen([concept for concept, _ in _DIAGNOSED], kind),
        "condition_start_date": start,
        "condition_start_datetime": start.astype("datetime64[us]"),
        "condition_end_date": pa.date32(),
        "condition_end_datetime": pa.timestamp("us"),
        "condition_type_concept_id": _EHR,
        "condition_status_concept_id": 32902,
        "stop_reason": pa.string(),
        "provider_id": rng.integers(1, 900, _CONDITIONS),
        "visit_occurrence_id": rng.integers(1, _VISITS + 1, _CONDITIONS),
        "visit_detail_id": pa.int64(),
        "condition_source_value": _chosen([source for _, source in _DIAGNOSED], kind),
        "condition_source_concept_id": 0,
        "condition_status_source_value": pa.string(),
    }
    return _table(columns, _CONDITIONS)


def _measurement(rng: np.random.Generator, born: Any) -> pa.Table:
    person = rng.integers(1, PERSONS + 1, _MEASUREMENTS)
    kind = rng.integers(0, len(_MEASURED), _MEASUREMENTS)
    mean, spread = (np.array([row[column] for row in _MEASURED])[kind] for column in (4, 5))
    # Pressure rises with age, so that the query of the demo has something to find.
    age = np.where(kind == 0, (2020 - born[person - 1]) * 0.3 - 15, 0.0)
    day = _dates(rng, _MEASUREMENTS)
    columns = {
        "measurement_id": np.arange(1, _MEASUREMENTS + 1),
        "person_id": person,
        "measurement_concept_id": _chosen([row[0] for row in _MEASURED], kind),
        "measurement_date": day,
        "measurement_datetime": day.astype("datetime64[us]"),
        "measurement_time": pa.string(),
        "measurement_type_concept_id": _EHR,
        "operator_concept_id": pa.int64(),
        "value_as_number": np.round(rng.normal(mean + age, spread), 3),
        "value_as_concept_id": pa.int64(),
        "unit_concept_id": _chosen([row[2] for row in _MEASURED], kind),
        "range_low": pa.float64(),
        "range_high": pa.float64(),
        "provider_id": rng.integers(1, 900, _MEASUREMENTS),
        "visit_occurrence_id": rng.integers(1, _VISITS + 1, _MEASUREMENTS),
        "visit_detail_id": pa.int64(),
        "measurement_source_value": _chosen([row[3] for row in _MEASURED], kind),
        "measurement_source_concept_id": 0,
        "unit_source_value": _chosen([row[1] for row in _MEASURED], kind),
        "unit_source_concept_id": 0,
        "value_source_value": pa.string(),
        "measurement_event_id": pa.int64(),
        "meas_event_field_concept_id": 0,
    }
    return _table(columns, _MEASUREMENTS)
