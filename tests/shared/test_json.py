"""JSON as RFC 8259 has it: the cases of JSONTestSuite (Nicolas Seriot, "Parsing JSON is a Minefield") as values of a
record's field, read on the fast path and on the slow one."""

from __future__ import annotations

import json

import pytest

from shared.bodies import InvalidBody
from shared.records import TASKS
from shared.validation import InvalidRecord
from tests.support.bodies import body_of, check, count
from tests.support.service import task, values_of

VALID = [
    *(
        b"[[] ]",
        b'[""]',
        b"[]",
        b'["a"]',
        b"[false]",
        b'[null, 1, "1", {}]',
        b"[null]",
        b"[1\n]",
        b" [1]",
        b"[1,null,null,2]",
    ),
    *(b"[2] ", b"[123e65]", b"[0e+1]", b"[0e1]", b"[ 4]", b"[-0]", b"[-123]", b"[-1]", b"[-0.0]", b"[1E22]", b"[1E-2]"),
    *(b"[1E+2]", b"[123e45]", b"[123.456e78]", b"[1e-2]", b"[1e+2]", b"[123]", b"[123.456789]", b"[20e1]", b"[0]"),
    *(b"[-0.000000000000000000000000000000000000000000000000000000000000000000000000000001]", b"[9007199254740993]"),
    *(
        b'{"asd":"sdf"}',
        b'{"a":"b","a":"c"}',
        b'{"a":"b","a":"b"}',
        b"{}",
        b'{"":0}',
        b'{"foo\\u0000bar": 42}',
        b'{"a":[]}',
    ),
    *(
        b'{ "min": -1.0e+28, "max": 1.0e+28 }',
        b'{"x":[{"id": "x"}], "id": "x"}',
        b'{\n"a": "b"\n}',
        b'{"title":"\\u041f\\u043e"}',
    ),
    *(
        b'["\\u0060\\u012a\\u12AB"]',
        b'["\\uD801\\udc37"]',
        b'["\\ud83d\\ude39\\ud83d\\udc8d"]',
        b'["\\"\\\\\\/\\b\\f\\n\\r\\t"]',
    ),
    *(
        b'["\\\\u0000"]',
        b'["\\""]',
        b'["a/*b*/c/*d//e"]',
        b'["\\\\a"]',
        b'["\\\\n"]',
        b'["\\u0012"]',
        b'["\\uFFFF"]',
        b'["asd"]',
    ),
    *(
        b'[ "asd"]',
        b'["\\uDBFF\\uDFFF"]',
        b'["new\\u00A0line"]',
        b'["\xf4\x8f\xbf\xbf"]',
        b'["\xef\xbf\xbf"]',
        b'["\\u0000"]',
    ),
    *(
        b'["\\u002c"]',
        b'["\xcf\x80"]',
        b'["\xf0\x9b\xbf\xbf"]',
        b'["asd "]',
        b'" "',
        b'["\\uD834\\uDd1e"]',
        b'["\\u0821"]',
    ),
    *(
        b'["\\u0123"]',
        b'["\xe2\x80\xa8"]',
        b'["\xe2\x80\xa9"]',
        b'["\\u0061\\u30af\\u30EA\\u30b9"]',
        b'["new\\u000Aline"]',
        b'["\x7f"]',
    ),
    *(
        b'["\\uA66D"]',
        b'["\\u005C"]',
        b'["\xe2\x8d\x82\xe3\x88\xb4\xe2\x8d\x82"]',
        b'["\\uDBFF\\uDFFE"]',
        b'["\\u200B"]',
        b'["\\u2064"]',
    ),
    *(
        b'["\\uFDD0"]',
        b'["\\uFFFE"]',
        b'["\\u0022"]',
        b'["\xe2\x82\xac\xf0\x9d\x84\x9e"]',
        b'["aa\x7fa"]',
        b"false",
        b"42",
    ),
    *(
        b"-0.1",
        b"null",
        b'"asd"',
        b"true",
        b'""',
        b'["a"]\n',
        b"[true]",
        b" [] ",
        b"[0.00005]",
        b"[18446744073709551615]",
    ),
]
INVALID = [
    *(
        b"[1 true]",
        b"[a\xe5]",
        b'["": 1]',
        b'[""],',
        b"[,1]",
        b"[1,,2]",
        b'["x",,]',
        b'["x"]]',
        b'["",]',
        b'["x"',
        b"[x",
        b"[3[4]]",
    ),
    *(
        b"[\xff]",
        b"[1:2]",
        b"[,]",
        b"[-]",
        b'[   , ""]',
        b'["a",\n4\n,1,',
        b"[1,]",
        b"[1,,]",
        b'["\x0ba"\\f]',
        b"[*]",
        b'[""',
    ),
    *(
        b"[1,",
        b"[1,\n1\n,1",
        b"[{}",
        b"[fals]",
        b"[nul]",
        b"[tru]",
        b"123\x00",
        b"[++1234]",
        b"[+1]",
        b"[+Inf]",
        b"[-01]",
        b"[-1.0.]",
    ),
    *(
        b"[-2.]",
        b"[-NaN]",
        b"[.-1]",
        b"[.2e-3]",
        b"[0.1.2]",
        b"[0.3e+]",
        b"[0.3e]",
        b"[0.e1]",
        b"[0E+]",
        b"[0E]",
        b"[0e+]",
        b"[0e]",
    ),
    *(
        b"[1.0e+]",
        b"[1.0e-]",
        b"[1.0e]",
        b"[1 000.0]",
        b"[1eE2]",
        b"[2.e+3]",
        b"[2.e-3]",
        b"[2.e3]",
        b"[9.e+]",
        b"[Inf]",
        b"[NaN]",
    ),
    *(
        b"[\xef\xbc\x91]",
        b"[1+2]",
        b"[0x1]",
        b"[0x42]",
        b"[Infinity]",
        b"[0e+-1]",
        b"[-123.123foo]",
        b"[123\xe5]",
        b"[1e1\xe5]",
    ),
    *(
        b"[0\xe5]",
        b"[-Infinity]",
        b"[-foo]",
        b"[- 1]",
        b"[-012]",
        b"[-.123]",
        b"[-1x]",
        b"[1ea]",
        b"[1e\xe5]",
        b"[1.]",
        b"[.123]",
    ),
    *(
        b"[1.2a-3]",
        b"[1.8011670033376514H-308]",
        b"[012]",
        b'["x", truth]',
        b'{[: "x"}',
        b'{"x", null}',
        b'{"x"::"b"}',
        b'{a: "b"}',
    ),
    *(
        b"{\xf0\x9f\x87\xa8\xf0\x9f\x87\xad}",
        b'{"a":"a" 123}',
        b"{key: 'value'}",
        b'{"\xb9":"0",}',
        b'{"a" b}',
        b'{:"b"}',
        b'{"a" "b"}',
    ),
    *(
        b'{"a":',
        b'{"a"',
        b"{1:1}",
        b"{9999E9999:1}",
        b"{null:null,null:null}",
        b'{"id":0,,,,,}',
        b"{'a':0}",
        b'{"id":0,}',
        b'{"a":"b"}/**/',
    ),
    *(
        b'{"a":"b"}/**//',
        b'{"a":"b"}//',
        b'{"a":"b"}/',
        b'{"a":"b",,"c":"d"}',
        b'{a: "b"}',
        b'{"a":"a',
        b'{ "foo" : "bar", "a" }',
    ),
    *(
        b'{"a":"b"}#',
        b" ",
        b'["\\uD800\\"]',
        b'["\\uD800\\u"]',
        b'["\\uD800\\u1"]',
        b'["\\uD800\\u1x"]',
        b"[\xc3\xa9]",
        b'["\\\x00"]',
    ),
    *(
        b'["\\x00"]',
        b'["\\\\\\"]',
        b'["\\\t"]',
        b'["\\\xf0\x9f\x8c\x80"]',
        b'["\\"]',
        b'["\\u00A"]',
        b'["\\uD834\\uDd"]',
    ),
    *(
        b'["\\uD800\\uD800\\x"]',
        b'["\\u\xe5"]',
        b'["\\a"]',
        b'["\\uqqqq"]',
        b'["\\\xe5"]',
        b'[\\u0020"asd"]',
        b"[\\n]",
        b'"',
        b"['single quote']",
    ),
    *(
        b"abc",
        b'["\\',
        b'["a\x00a"]',
        b'["new\nline"]',
        b'["\t"]',
        b'"\\UA66D"',
        b'""x',
        b"<.>",
        b"[<null>]",
        b"[1]x",
        b"[1]]",
        b'["asd]',
    ),
    *(
        b"a\xc3\xa5",
        b"[True]",
        b"1]",
        b'{"x": true,',
        b"[][]",
        b"]",
        b"\xef\xbb\xbf{}",
        b"\xe5",
        b"[",
        b'{"":',
        b"2@",
        b"{}}",
        b'{"a":/*comment*/"b"}',
    ),
    *(
        b'{"a": true} "x"',
        b"['",
        b"[,",
        b"[{",
        b'["a',
        b'["a"',
        b"{",
        b"{]",
        b"{,",
        b"{[",
        b'{"a',
        b"{'a'",
        b'["\\{["\\{["\\{["\\{',
        b"*",
    ),
    *(
        b'{"a":"b"}#{}',
        b'[\\u000A""]',
        b"[1",
        b"[ false, nul",
        b"[ true, fals",
        b"[ false, tru",
        b'{"asd":"asd"',
        b"\xc3\xa5",
        b"[\xe2\x81\xa0]",
    ),
    *(
        b"\xef\xbb\xbf",
        b"[\x0c]",
        b"[\xc2\x85]",
        b"\x00",
        b"[1e400]",
        b"[-1e+9999]",
        b"[0.4e00669999999999999999999999999999999999999999]",
    ),
    *(
        b'["\\uDADA"]',
        b'["\\uD888\\u1234"]',
        b'["\\uD800\\n"]',
        b'["\\uDd1ea"]',
        b'["\\uD800\\uD800\\n"]',
        b'["\\ud800"]',
        b'["\\ud800abc"]',
    ),
    *(
        b'["\\uDd1e\\uD834"]',
        b'["\\uDFAA"]',
        b'["\xe6\x97\xa5\xd1\x88\xfa"]',
        b'["\xed\xa0\x80"]',
        b'["\xff"]',
        b'["\xf4\xbf\xbf\xbf"]',
    ),
    *(
        b'["\x81"]',
        b'["\xe9"]',
        b'["\xc0\xaf"]',
        b'["\xfc\x83\xbf\xbf\xbf\xbf"]',
        b'["\xfc\x80\x80\x80\x80\x80"]',
        b'["\xe0\xff"]',
    ),
]
BEYOND_64_BITS = [b"[100000000000000000000]", b"[-123123123123123123123123123123]", b"[18446744073709551616]"]


def body_with(value: bytes) -> bytes:
    return body_of(TASKS, task(x="@")).replace(b'"@"', value)


@pytest.mark.parametrize("value", VALID)
def test_what_is_json_is_taken_with_its_value(value: bytes) -> None:
    body = body_with(value)
    assert values_of(check(TASKS, body))[0]["extra"]["x"] == json.loads(value)
    assert count(TASKS, body) == 1
    assert values_of(check(TASKS, body.replace(b'"row_index":1', b'"row_index":"1"')))[0]["extra"]["x"] == json.loads(
        value
    )


@pytest.mark.parametrize("value", INVALID)
@pytest.mark.parametrize("field", ["x", "metadata", "created_at", "source_text"])
def test_what_is_no_json_is_refused_as_such(value: bytes, field: str) -> None:
    body = body_of(TASKS, task(**{field: "@"})).replace(b'"@"', value)
    with pytest.raises(InvalidBody) as raised:
        check(TASKS, body)
    assert raised.value.code == "INVALID_JSON"


@pytest.mark.parametrize("value", INVALID)
def test_nor_is_a_body_of_it(value: bytes) -> None:
    for body in (value, b'{"tasks":' + value, b'{"tasks":[' + value + b"]}"):
        with pytest.raises((InvalidBody, InvalidRecord)):
            check(TASKS, body)


@pytest.mark.parametrize("value", BEYOND_64_BITS)
def test_an_integer_that_parsers_round_is_refused_for_that(value: bytes) -> None:
    with pytest.raises(InvalidRecord) as raised:
        check(TASKS, body_with(value))
    assert raised.value.errors[0].message == "holds an integer beyond 64 bits"
