"""What an error of the database means for a batch: number -> class, as data.

Exception classes don't tell (1366, 1054 and 2006 are all OperationalError), so the number decides, together with the
server's flavour: 4031 is an idle timeout on MySQL and a trigger's error on MariaDB. Numbers: MySQL 8.4 and MariaDB
error references; what an operator does about each stands in docs/DEPLOYMENT.md.
"""

from __future__ import annotations

from enum import Enum


class ErrorClass(str, Enum):
    """What to do with the batch. In every case the transaction is rolled back first."""

    RETRY = "retry"
    """Nobody's fault (deadlock, lock wait): again, soon."""
    RECONNECT = "reconnect"
    """The connection is gone or useless: a new one, then again."""
    READ_ONLY = "read_only"
    """This host does not take writes (now): the next host."""
    TOO_BIG = "too_big"
    """The statement is over a limit of the server: halve it."""
    DATA = "data"
    """A row is refused for what is in it: find it, write the others."""
    SCHEMA = "schema"
    """Table, rights or settings are wrong: write nothing, keep everything, tell the operator."""
    STORAGE = "storage"
    """The server's own disk or files fail: again, slowly, and tell the operator."""
    UNKNOWN = "unknown"
    """Never seen: again, slowly, and tell the operator. Never a dead letter."""


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
    ErrorClass.RETRY: "1205 1213 1020 1099 1180 1206 1223 1297 1317 1412 1613 1614 1615 1689 3101 3572",
    ErrorClass.RECONNECT: "0 2000-2006 2011-2014 2027 2055 5013 5014 1040 1047 1053 1129 1152 1156-1161 1184 1203"
    " 1226 3168 3169",
    ErrorClass.READ_ONLY: "1290 1792 1836 3100",
    ErrorClass.TOO_BIG: "1153 1301 2020",
    ErrorClass.DATA: "1048 1062 1118 1169 1216 1264 1265 1292 1300 1365 1366 1367 1406 1411 1416 1441 1452 1525 1526"
    " 1644 1690 1748 3140 3141 3156-3158 3819 3854",
    ErrorClass.SCHEMA: "1044-1046 1049 1051 1054 1058 1064 1103 1109 1115 1130 1131 1133 1136 1142 1143 1146 1148 1149"
    " 1193 1227 1231 1235 1241 1251 1267 1273 1286 1298 1305 1356 1364 1370 1442 1449 1467 1524 1698 1820 1862 2007"
    " 2019 2026 2047 2049 2054 2059 2061 3098 3118 3144 3159 3750",
    ErrorClass.STORAGE: "1015 1016 1021 1026 1030 1034 1037 1038 1041 1114 1194 1195 1712 1812 1815 1877 1878 1932",
}
_ONLY = {
    Flavour.MYSQL: {ErrorClass.RETRY: "3024", ErrorClass.RECONNECT: "4031"},
    Flavour.MARIADB: {
        ErrorClass.RETRY: "1969",
        ErrorClass.RECONNECT: "1927",
        ErrorClass.DATA: "4025",
        ErrorClass.SCHEMA: "4151 4166",
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
"""Classes that do not pass by themselves: an operator is told at once."""
ALARMING_NUMBERS = {1129}
"""Retried like its class, but only an operator can lift it (FLUSH HOSTS)."""


def classify(flavour: Flavour, error: BaseException) -> tuple[ErrorClass, int]:
    """Returns: the class, and the server's or client's number (-1 where there is none).

    A Python error while a row is put into SQL (lone surrogates, overflow) is the row's own: DATA.
    """
    if isinstance(error, (UnicodeEncodeError, OverflowError, ValueError, TypeError)):
        return ErrorClass.DATA, -1
    number = error.args[0] if error.args and isinstance(error.args[0], int) else -1
    return CLASS_OF.get((flavour, number), ErrorClass.UNKNOWN), number
