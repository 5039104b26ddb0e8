"""What an error of the database means for a batch: number -> class, as data.

Exception classes don't tell (1366, 1054 and 2006 are all OperationalError), so the number decides, together with the
server's flavour: 4031 is an idle timeout on MySQL and a trigger's error on MariaDB. Numbers: the lists that MySQL 9.7
and MariaDB 10.11 come with (errmsg.sys); what an operator does about each stands in docs/DEPLOYMENT.md.
"""

from __future__ import annotations

import errno
import os
import re
from enum import Enum


class ErrorClass(str, Enum):
    """What to do with the batch. In every case the transaction is rolled back first."""

    RETRY = "retry"
    """Deadlock, lock wait: retry soon."""
    RECONNECT = "reconnect"
    """The connection is lost or useless: reconnect, retry."""
    READ_ONLY = "read_only"
    """This host accepts no writes: try the next host."""
    TOO_BIG = "too_big"
    """Over a size or memory limit of the server: halve it. A single row waits until the limit is raised."""
    DATA = "data"
    """A row is refused for its content: find it, write the others."""
    SCHEMA = "schema"
    """Table, rights or settings are wrong: write nothing, keep everything, tell the operator."""
    STORAGE = "storage"
    """The server's disk or files fail: retry slowly, tell the operator."""
    UNKNOWN = "unknown"
    """Never seen before: retry slowly, tell the operator. Never a dead letter."""


class Flavour(str, Enum):
    MYSQL = "mysql"
    MARIADB = "mariadb"


def _numbers(text: str) -> set[int]:
    """ "2000-2002 2011" -> {2000, 2001, 2002, 2011}"""
    found: set[int] = set()
    for part in text.split():
        first, _, last = part.partition("-")
        found.update(range(int(first), int(last or first) + 1))
    return found


_BOTH = {
    ErrorClass.RETRY: "1020 1099 1180 1205 1213 1223 1297 1317 1412 1613-1615 1637 1689 3101 3177 3572",
    ErrorClass.RECONNECT: "0 2000-2006 2011-2014 2027 2055 5013 5014 1040 1042 1043 1047 1053 1129 1135 1152 1154-1161"
    " 1184 1203 1226 1835 3168 3169",
    ErrorClass.READ_ONLY: "1036 1290 1792 1836 1874 3032 3100",
    ErrorClass.TOO_BIG: "1037 1038 1041 1119 1153 1162 1197 1206 1301 1436 1705 1713 2020 3015 3044",
    ErrorClass.DATA: "1022 1048 1062 1118 1169 1216 1264 1265 1292 1300 1365-1367 1369 1406 1411 1416 1441 1452 1525"
    " 1526 1586 1644 1690 1748 3140 3141 3151 3156-3158 3673 3751 3752 3819 3854 3903-3907",
    ErrorClass.SCHEMA: "1044-1046 1049 1051 1054 1058 1064 1103 1104 1109 1115 1130 1131 1133 1136 1142 1143 1146 1148"
    " 1149 1193 1227-1229 1231 1232 1235 1238 1241 1251 1267 1273 1286 1288 1298 1305 1348 1356 1364 1370 1442 1449"
    " 1467 1471 1524 1621 1661-1667 1698 1785 1820 1862 1873 2007 2019 2026 2047 2049 2054 2059 2061 3098 3105 3118"
    " 3144 3159 3161 3164 3503 3552 3554 3750 3879 3955",
    ErrorClass.STORAGE: "1004 1012 1013 1015-1018 1021 1024 1026 1030 1032-1035 1114 1194 1195 1534 1593 1598 1707 1712"
    " 1810-1812 1815 1817 1877 1878 1932 3000 3019 3675",
}
_ONLY = {
    Flavour.MYSQL: {
        ErrorClass.RETRY: "3024 3781 3797 3798 4094",
        ErrorClass.RECONNECT: "3782 4031 6141",
        ErrorClass.READ_ONLY: "3783 3796 3799 3989",
        ErrorClass.TOO_BIG: "3150 3170 3186 3231 3985 4081 4082",
        ErrorClass.SCHEMA: "6038 6126 6127",
    },
    Flavour.MARIADB: {
        ErrorClass.RETRY: "1964 1969 4145",
        ErrorClass.RECONNECT: "1927",
        ErrorClass.DATA: "4025",
        ErrorClass.SCHEMA: "4150 4151 4166",
        ErrorClass.STORAGE: "4139",
    },
}

CLASS_OF: dict[tuple[Flavour, int], ErrorClass] = {
    (flavour, number): error_class
    for flavour in Flavour
    for table in (_BOTH, _ONLY[flavour])
    for error_class, numbers in table.items()
    for number in _numbers(numbers)
}

ALARMING = {ErrorClass.SCHEMA, ErrorClass.STORAGE, ErrorClass.UNKNOWN, ErrorClass.READ_ONLY}
"""Faults that last until an operator acts."""
OF_THE_SESSION = {1969, 3024}
"""Limits that a session copies from the server when it starts: a new session may have another."""
LOGIN_REFUSED = {1045, 1698}
"""A server may lock the account after some of these: retried rarely."""
NAMES_ONLY = {1048, 1264, 1265, 1406, 3819, 4025}
"""Of class DATA: their messages name a column or a constraint, and no value."""
ALARMING_NUMBERS = {1129}
"""Retried like its class, but only an operator can lift it (FLUSH HOSTS)."""


_SYSTEM_ERROR = re.compile(r" \((-?\d{1,5})\)$")


def classify(flavour: Flavour, error: BaseException) -> tuple[ErrorClass, int]:
    """Returns: the class, and the server's or client's number (-1 where there is none).

    A Python error while a row is put into SQL (lone surrogates, overflow) is the row's own: DATA.
    """
    if isinstance(error, (UnicodeEncodeError, OverflowError, ValueError, TypeError)):
        return ErrorClass.DATA, -1
    number = error.args[0] if error.args and isinstance(error.args[0], int) else -1
    return CLASS_OF.get((flavour, number), ErrorClass.UNKNOWN), number


def unreached(message: str, port: str) -> str:
    """A client's message that nobody answers, with the port, and words for the number of the system's error."""
    said = _SYSTEM_ERROR.search(message)
    if said is None:
        return message + port
    number = int(said[1])
    # libmariadb says EINPROGRESS of each connect() that it has waited for, whatever became of it.
    why = "refused, or no answer" if number == errno.EINPROGRESS else os.strerror(number) if number > 0 else ""
    return message[: said.start()] + port + (f": {why}" if why else "")
