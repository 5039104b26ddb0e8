from __future__ import annotations

import MySQLdb
import pytest

from flusher.mysql_errors import CLASS_OF, ErrorClass, Flavour, classify

# The table of docs/RELIABILITY.md once more, in its own words; (MySQL) and (MariaDB) mark what only one of them means.
TABLE = {
    ErrorClass.RETRY: "1205 1213 1020 1099 1180 1206 1223 1297 1317 1412 1613 1614 1615 1689 1969(MariaDB) 3024(MySQL)"
    " 3101 3572",
    ErrorClass.RECONNECT: "2000-2006 2011-2014 2027 2055 5013 5014 1040 1047 1053 1152 1156-1161 1184 1203 1226"
    " 1927(MariaDB) 3168 3169 4031(MySQL) 0 1129",
    ErrorClass.READ_ONLY: "1290 1792 1836 3100",
    ErrorClass.TOO_BIG: "1153 1301 2020",
    ErrorClass.DATA: "1048 1062 1118 1169 1216 1264 1265 1292 1300 1365 1366 1367 1406 1411 1416 1441 1452 1525 1526"
    " 1644 1690 1748 3140 3141 3156-3158 3819 3854 4025(MariaDB)",
    ErrorClass.SCHEMA: "1044-1046 1049 1051 1054 1058 1064 1103 1109 1115 1130 1131 1133 1136 1142 1143 1146 1148 1149"
    " 1193 1227 1231 1235 1241 1251 1267 1273 1286 1298 1305 1356 1364 1370 1442 1449 1467 1524 1698 1820 1862 2007"
    " 2019 2026 2047 2049 2054 2059 2061 3098 3118 3144 3159 3750 4151(MariaDB) 4166(MariaDB)",
    ErrorClass.STORAGE: "1015 1016 1021 1026 1030 1034 1037 1038 1041 1114 1194 1195 1712 1812 1815 1877 1878 1932",
}


def listed() -> list[tuple[Flavour, int, ErrorClass]]:
    found = []
    for error_class, words in TABLE.items():
        for word in words.split():
            numbers, _, only = word.partition("(")
            first, _, last = numbers.partition("-")
            for number in range(int(first), int(last or first) + 1):
                found += [
                    (flavour, number, error_class)
                    for flavour in Flavour
                    if not only or only.rstrip(")").lower() == flavour.value
                ]
    return found


def test_the_table_is_complete_and_has_nothing_else() -> None:
    assert {(flavour, number): error_class for flavour, number, error_class in listed()} == CLASS_OF


def test_no_number_is_in_two_classes() -> None:
    numbers = [(flavour, number) for flavour, number, _ in listed()]

    assert len(numbers) == len(set(numbers)) == len(CLASS_OF)


@pytest.mark.parametrize(
    ("number", "on_mysql", "on_mariadb"),
    [
        (1969, ErrorClass.UNKNOWN, ErrorClass.RETRY),
        (3024, ErrorClass.RETRY, ErrorClass.UNKNOWN),
        (1927, ErrorClass.UNKNOWN, ErrorClass.RECONNECT),
        (4031, ErrorClass.RECONNECT, ErrorClass.UNKNOWN),
        (4025, ErrorClass.UNKNOWN, ErrorClass.DATA),
        (4151, ErrorClass.UNKNOWN, ErrorClass.SCHEMA),
        (4166, ErrorClass.UNKNOWN, ErrorClass.SCHEMA),
    ],
)
def test_a_number_that_two_servers_use_differently_is_read_by_its_server(
    number: int, on_mysql: ErrorClass, on_mariadb: ErrorClass
) -> None:
    error = MySQLdb.OperationalError(number, "message")

    assert classify(Flavour.MYSQL, error) == (on_mysql, number)
    assert classify(Flavour.MARIADB, error) == (on_mariadb, number)


@pytest.mark.parametrize("flavour", Flavour)
@pytest.mark.parametrize(
    "error_type",
    [MySQLdb.OperationalError, MySQLdb.IntegrityError, MySQLdb.DataError, MySQLdb.ProgrammingError],
)
def test_the_number_decides_and_not_the_class_of_the_exception(flavour: Flavour, error_type: type[Exception]) -> None:
    for error_class, number in ((ErrorClass.DATA, 1366), (ErrorClass.SCHEMA, 1054), (ErrorClass.RECONNECT, 2006)):
        assert classify(flavour, error_type(number, "message")) == (error_class, number)


@pytest.mark.parametrize("flavour", Flavour)
@pytest.mark.parametrize(
    "error",
    [
        UnicodeEncodeError("utf-8", "\ud800", 0, 1, "surrogates not allowed"),
        OverflowError("too large"),
        ValueError("not so"),
        TypeError("not this"),
    ],
)
def test_a_python_error_while_a_row_is_put_into_sql_is_the_rows_own(flavour: Flavour, error: Exception) -> None:
    assert classify(flavour, error) == (ErrorClass.DATA, -1)


@pytest.mark.parametrize("flavour", Flavour)
@pytest.mark.parametrize(
    ("error", "number"),
    [
        (MySQLdb.OperationalError(65000, "new in the next version"), 65000),
        (MySQLdb.OperationalError(), -1),
        (MySQLdb.ProgrammingError("no number at all"), -1),
        (MySQLdb.InterfaceError(None, "no number either"), -1),
    ],
)
def test_what_was_never_seen_is_unknown_and_so_never_a_dead_letter(
    flavour: Flavour, error: Exception, number: int
) -> None:
    assert classify(flavour, error) == (ErrorClass.UNKNOWN, number)
