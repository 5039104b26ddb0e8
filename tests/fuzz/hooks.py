"""What schemathesis must know that no schema can say: a time that is accepted does not lie in the future, and its
second is one that DATETIME holds."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

import schemathesis
from hypothesis import strategies as st

zones = st.integers(-23 * 60 - 59, 23 * 60 + 59).map(lambda minutes: timezone(timedelta(minutes=minutes)))
times = st.datetimes(datetime(1000, 1, 2), datetime(2026, 1, 1))
forms = st.sampled_from(["Z", "z", ""])

schemathesis.openapi.format(
    "date-time",
    st.one_of(
        st.builds(lambda time, zone: time.replace(tzinfo=zone).isoformat(), times, zones),
        st.builds(lambda time, form: time.isoformat() + form, times, forms),
    ),
)
