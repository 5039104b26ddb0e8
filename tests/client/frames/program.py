"""A backend with a frame: hands over its rows in every way, then single values; prints warnings and counters."""

import json
import logging
import sys
from datetime import datetime

import numpy as np
import pandas as pd
from services.persistence.persistence_client import persistence_client

records = logging.StreamHandler(sys.stdout)
logging.getLogger("services.persistence.persistence_client").addHandler(records)
client = persistence_client.sync

frame = pd.DataFrame(
    {
        "session_id": "s1",
        "task_id": ["TASK_0000", "TASK_0001"],
        "source_text": ["开始游戏", "Start"],
        "target_text": ["Start", np.nan],
        "status": "completed",
        "row_index": np.array([7, 8], dtype=np.int64),
        "confidence": np.array([0.5, np.nan], dtype=np.float32),
        "duration_ms": [246.0, np.nan],
        "start_time": pd.to_datetime(["2026-11-23 10:15:30.123456789", None]),
        "end_time": pd.to_datetime(["2026-11-23 10:15:31", None]).tz_localize("Asia/Tokyo"),
        "is_final": np.array([True, False]),
        "char_count": pd.array([4, None], dtype="Int64"),
        "group_id": pd.array(["g", None], dtype="string"),
        "reviewer_notes": [None, pd.NA],
    }
)


def ways():
    yield "frame", frame
    yield "dicts", frame.to_dict("records")
    yield "itertuples", frame.itertuples()
    yield "itertuples without index", frame.itertuples(index=False)
    yield "series", (row for _, row in frame.iterrows())
    yield "one by one", [frame.loc[0], frame.loc[1]]


for way, rows in ways():
    client.persist_session({"session_id": "s1", "filename": way})
    client.persist_tasks(rows)
    client.flush_all()  # or the next way's states would replace these

VALUES = {
    "int64": np.int64(-5),
    "uint64": np.uint64(2**64 - 1),
    "float16": np.float16(0.5),
    "float64 NaN": np.float64("nan"),
    "bool_": np.bool_(True),
    "str_": np.str_("text"),
    "array": np.array([[1.5, np.nan], [2, 3]], dtype=np.float32),
    "array of a point": np.array(3),
    "datetime64": np.datetime64("2026-11-23T10:15:30.123456789"),
    "NaT": np.datetime64("NaT"),
    "array of times": np.array(["2026-11-23", "NaT"], dtype="datetime64[ns]"),
    "timestamp": pd.Timestamp("2026-11-23 10:15:30"),
    "timestamp of another zone": pd.Timestamp("2026-11-23 10:15:30", tz="America/New_York"),
    "pandas NaT": pd.NaT,
    "pandas NA": pd.NA,
    "nested": {"a": [pd.NA, np.float32("nan"), {"b": np.int32(1)}], np.int64(3): datetime(2026, 11, 23)},
    "categorical": pd.Categorical(["a", None]),
    "series": pd.Series({"a": 1, "b": np.nan}),
}
for name, value in VALUES.items():
    client.persist_session({"session_id": name, "filename": "f", "metadata": {"value": value}})
UNSENDABLE = {
    "complex64": np.complex64(1j),
    "timedelta64": np.timedelta64(5, "ns"),
    "Timedelta": pd.Timedelta(5),
    "infinity": np.float32("inf"),
    "DataFrame": frame,
    "bytes_": np.bytes_(b"x"),
    "datetime64": np.datetime64("30000-01-01"),
}
for name, value in UNSENDABLE.items():
    client.persist_session({"session_id": name, "filename": "f", name: value})
client.close()
print(json.dumps([np.__version__, pd.__version__, client.counters]))
