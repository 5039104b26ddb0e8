from __future__ import annotations

import MySQLdb
import pytest

from flusher import mysql_errors
from flusher.mysql_errors import CLASS_OF, ErrorClass, Flavour, classify, unreached


def test_no_number_is_in_two_classes() -> None:
    for flavour in Flavour:
        numbers = [
            number
            for table in (mysql_errors._BOTH, mysql_errors._ONLY[flavour])
            for text in table.values()
            for number in mysql_errors._numbers(text)
        ]
        assert len(numbers) == len(set(numbers))


@pytest.mark.parametrize(
    ("error_class", "numbers"),
    [
        (ErrorClass.RETRY, "1205 1213 1317"),
        (ErrorClass.RECONNECT, "0 1040 1047 1129 2002 2006 2013 2055"),
        (ErrorClass.READ_ONLY, "1290 1792 1836 1874 3032 3100"),
        (ErrorClass.TOO_BIG, "1037 1038 1041 1119 1153 1197 1206 1436 1705 1713 3015 3044"),
        (ErrorClass.DATA, "1048 1062 1264 1292 1366 1406 1644 3140 3151 3819"),
        (ErrorClass.SCHEMA, "1044 1045 1049 1054 1064 1142 1143 1146 1364 1665 1820 1862 2026 3118 3159 3955"),
        (ErrorClass.STORAGE, "1021 1114 1030 1598 1811 3019 3675"),
    ],
)
def test_what_every_server_means_by_a_number(error_class: ErrorClass, numbers: str) -> None:
    for number in map(int, numbers.split()):
        assert {CLASS_OF[flavour, number] for flavour in Flavour} == {error_class}, number


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
        (1964, ErrorClass.UNKNOWN, ErrorClass.RETRY),
        (3989, ErrorClass.READ_ONLY, ErrorClass.UNKNOWN),
        (4082, ErrorClass.TOO_BIG, ErrorClass.UNKNOWN),
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


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("Can't connect to server on 'db' (115)", "Can't connect to server on 'db', port 1: refused, or no answer"),
        (
            "Can't connect to MySQL server on 'db' (111)",
            "Can't connect to MySQL server on 'db', port 1: Connection refused",
        ),
        ("Unknown server host 'db' (-2)", "Unknown server host 'db', port 1"),
        ("Can't connect", "Can't connect, port 1"),
    ],
)
def test_a_server_that_is_not_reached_is_told_with_port_and_words(said: str, shown: str) -> None:
    assert unreached(said, ", port 1") == shown
