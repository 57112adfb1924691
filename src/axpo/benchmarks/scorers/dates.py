"""Short answers that are neither numbers nor options: clock times, dates, names of months and days."""

from __future__ import annotations

import re

_TIME = re.compile(
    r"(?P<hour>[0-9]{1,2})\s?[:.]\s?(?P<minute>[0-9]{1,2})(?:\s?:\s?(?P<second>[0-9]{1,2}))?"
    r"\s*(?:(?P<half>[ap])\.?\s?m\b\.?)?(?:\s*o'?clock)?"
)
_DATE = re.compile(r"([0-9]{1,2})\s?[/.-]\s?([0-9]{1,2})\s?[/.-]\s?([0-9]{4})")
_MONTHS = (
    *("january", "february", "march", "april", "may", "june"),
    *("july", "august", "september", "october", "november", "december"),
)
_DAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
_CALENDAR = {
    **{name: name for name in (*_MONTHS, *_DAYS)},
    **{name[:3]: name for name in (*_MONTHS, *_DAYS)},
    "sept": "september",
    "tues": "tuesday",
    "thur": "thursday",
    "thurs": "thursday",
}


def parse_time(text: str) -> tuple[int, int] | None:
    """Hour, 0..23, and minute of a clock time; seconds other than zero make it another time, hence None.

    >>> parse_time("5:06 PM"), parse_time("17:06"), parse_time("8:0"), parse_time("12:05 a.m."), parse_time("25:00")
    ((17, 6), (17, 6), (8, 0), (0, 5), None)
    """
    match = _TIME.fullmatch(" ".join(text.lower().split()))
    if match is None or int(match["second"] or 0):
        return None
    hour, minute, half = int(match["hour"]), int(match["minute"]), match["half"]
    if half and not 1 <= hour <= 12:
        return None
    hour = hour % 12 + (12 if half == "p" else 0) if half else hour
    return (hour, minute) if hour < 24 and minute < 60 else None


def parse_date(text: str) -> tuple[int, int, int] | None:
    """Month, day and year of a date in digits, in the order in which they stand.

    >>> parse_date("04/12/2003") == parse_date("4/12/2003"), parse_date("2003")
    (True, None)
    """
    match = _DATE.fullmatch(text.strip())
    return (int(match[1]), int(match[2]), int(match[3])) if match else None


def calendar_name(text: str) -> str | None:
    """The full name of a month or a day of the week that a text is, or abbreviates.

    >>> calendar_name("Sep"), calendar_name("Sept."), calendar_name("December"), calendar_name("Dog")
    ('september', 'september', 'december', None)
    """
    return _CALENDAR.get(text.strip().rstrip(".").lower())
