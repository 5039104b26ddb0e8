// Counts the records of a body that validation.py would take in all, without a Python object for anything in it.
//
// simdjson parses: what it takes is JSON in UTF-8, to the last byte. Every "return 0" and "return false" means "not sure",
// never "invalid": validation.py decides then, and words the error. So the one mistake that must not be made is to count
// a record that validation.py would refuse.

#pragma once

#define SIMDJSON_EXCEPTIONS 0
#include <simdjson.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <string_view>
#include <vector>

#include "json_scanner.h"

namespace {

using simdjson::dom::element;
using simdjson::dom::element_type;

enum class Type { text, integer, rounded, number, time, choice, object, text_or_object, any, null };
constexpr const char *TYPES[] = {"text",   "integer", "rounded",        "number", "time",
                                 "choice", "object",  "text_or_object", "any",    "null"};

constexpr size_t MAX_FIELDS = 64;                // one bit each
constexpr size_t MAX_BODY_BYTES = 1024 * 1024;   // the parser keeps its buffers, which are some times as large
constexpr size_t SHORT_BODY_BYTES = 64 * 1024;    // holds too few long numbers to matter
constexpr size_t LONG_DIGITS = 20, MAX_LONG_NUMBERS = 500;
constexpr size_t MAX_OBJECT_BYTES = 64 * 1024;   // these three as in shared/bodies.py
constexpr size_t MAX_OBJECT_VALUES = 4096;
constexpr int MAX_OBJECT_DEPTH = 20;

struct Field {
    Type type;
    bool required;
    double least; // of a text: characters
    double most;
    std::vector<std::string> choices;
};

struct Latest {
    int64_t utc_s, local_s;
};

struct Plan {
    std::string name;
    Names names;
    std::vector<Field> fields;
    bool keep_unknown;
    uint64_t required = 0;
    simdjson::dom::parser parser{MAX_BODY_BYTES};
};

// Parses two digits; larger than any limit if they are none.
int two_digits(const char *digits) {
    const unsigned tens = static_cast<unsigned char>(digits[0]) - '0', ones = static_cast<unsigned char>(digits[1]) - '0';
    return tens > 9 || ones > 9 ? 1 << 20 : static_cast<int>(tens * 10 + ones);
}

// Days since 1970-01-01 in the Gregorian calendar, in eras of 400 years that begin in March.
int64_t days_of(int year, int month, int day) {
    year -= month <= 2;
    const int era = year / 400, year_of_era = year - era * 400;
    const int day_of_year = (153 * (month + (month > 2 ? -3 : 9)) + 2) / 5 + day - 1;
    return int64_t{era} * 146097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719468;
}

int days_in(int year, int month) {
    if (month == 2) return year % 4 == 0 && (year % 100 != 0 || year % 400 == 0) ? 29 : 28;
    return month == 4 || month == 6 || month == 9 || month == 11 ? 30 : 31;
}

// YYYY-MM-DDTHH:MM:SS, or with a blank for the T, up to six digits of a second, and Z, an offset of some hours, or none.
bool is_time(string_view text, Latest latest) {
    if (text.size() < 19) return false;
    const char *at = text.data();
    const int year = two_digits(at) * 100 + two_digits(at + 2), month = two_digits(at + 5), day = two_digits(at + 8);
    const int hour = two_digits(at + 11), minute = two_digits(at + 14), second = two_digits(at + 17);
    if (at[4] != '-' || at[7] != '-' || (at[10] != 'T' && at[10] != ' ') || at[13] != ':' || at[16] != ':') return false;
    // A year from either end, so that no offset leaves what a DATETIME holds.
    if (year < 1001 || year > 9998 || month < 1 || month > 12) return false;
    if (day < 1 || day > days_in(year, month) || hour > 23 || minute > 59 || second > 59) return false;
    int64_t seconds = ((days_of(year, month, day) * 24 + hour) * 60 + minute) * 60 + second;
    text.remove_prefix(19);
    if (!text.empty() && text[0] == '.') {
        size_t end = 1;
        while (end < text.size() && text[end] >= '0' && text[end] <= '9') end++;
        if (end < 2 || end > 7) return false;
        text.remove_prefix(end);
    }
    if (text.empty()) return seconds < latest.local_s;
    if (text != "Z") {
        if (text.size() != 6 || (text[0] != '+' && text[0] != '-') || text[3] != ':') return false;
        const int hours = two_digits(text.data() + 1), minutes = two_digits(text.data() + 4);
        if (hours > 14 || minutes > 59) return false;
        seconds -= (text[0] == '+' ? 60 : -60) * (hours * 60 + minutes);
    }
    return seconds < latest.utc_s;
}

// What is left of an object's limits. Sizes are those of its compact JSON, or a little more.
struct Budget {
    size_t values = MAX_OBJECT_VALUES, bytes = MAX_OBJECT_BYTES - 2;

    bool takes(size_t size) {
        if (size > bytes) return false;
        bytes -= size;
        return true;
    }

    bool takes_text(string_view text) {
        size_t size = text.size() + 3; // quotes, and a comma or colon
        if (size > bytes) return false;
        for (const unsigned char byte : text) size += byte < 0x20 ? 5 : byte == '"' || byte == '\\';
        return takes(size);
    }

    // Args: depth: of the containers around the value.
    bool takes_value(element value, int depth) {
        if (values == 0) return false;
        values--;
        switch (value.type()) {
        case element_type::STRING:
            return takes_text(value.get_string().value_unsafe());
        case element_type::OBJECT:
            return depth < MAX_OBJECT_DEPTH && takes(3) && takes_members(value.get_object().value_unsafe(), depth + 1);
        case element_type::ARRAY: {
            if (depth == MAX_OBJECT_DEPTH || !takes(3)) return false;
            const simdjson::dom::array list = value.get_array().value_unsafe();
            for (const element child : list)
                if (!takes_value(child, depth + 1)) return false;
            return true;
        }
        case element_type::INT64:
            return takes(std::to_string(value.get_int64().value_unsafe()).size() + 1);
        default:
            return takes(26); // the longest number and a comma
        }
    }

    bool takes_members(simdjson::dom::object object, int depth) {
        for (const auto member : object)
            if (!takes_text(member.key) || !takes_value(member.value, depth)) return false;
        return true;
    }
};

bool is_text(const Field &field, string_view text, Latest latest) {
    switch (field.type) {
    case Type::text:
    case Type::text_or_object:
        if (text.size() < field.least) return false;
        return text.size() <= field.most ||
               std::count_if(text.begin(), text.end(), [](char byte) { return (byte & 0xC0) != 0x80; }) <= field.most;
    case Type::time:
        return is_time(text, latest);
    case Type::choice:
        return std::find(field.choices.begin(), field.choices.end(), text) != field.choices.end();
    default:
        return false;
    }
}

bool is_number(const Field &field, double number, bool integral) {
    const bool fits = number >= field.least && number <= field.most;
    return fits && (field.type == Type::number || field.type == Type::rounded || (field.type == Type::integer && integral));
}

bool is_value(const Field &field, element value, Latest latest) {
    if (field.type == Type::any) return Budget().takes_value(value, 0);
    switch (value.type()) {
    case element_type::STRING:
        return is_text(field, value.get_string().value_unsafe(), latest);
    case element_type::INT64:
        return is_number(field, static_cast<double>(value.get_int64().value_unsafe()), true);
    case element_type::DOUBLE: {
        const double number = value.get_double().value_unsafe();
        return is_number(field, number, number == std::floor(number));
    }
    case element_type::OBJECT: {
        // As a text it has at most so many characters, which are bytes here.
        if (field.type == Type::text_or_object && field.most < MAX_OBJECT_BYTES - 1) return false;
        Budget budget;
        budget.bytes -= field.type == Type::text_or_object;
        return (field.type == Type::object || field.type == Type::text_or_object) &&
               budget.takes_members(value.get_object().value_unsafe(), 1);
    }
    case element_type::NULL_VALUE:
        return !field.required;
    default:
        return false;
    }
}

bool is_record(const Plan &plan, element item, Latest latest) {
    simdjson::dom::object record;
    if (item.get_object().get(record)) return false;
    uint64_t seen = 0;
    size_t next = 0;
    Budget extra;
    std::vector<string_view> unknown;
    for (const auto member : record) {
        const size_t number = plan.names.find(member.key, next);
        if (number == Names::NONE) {
            if (!plan.keep_unknown || !extra.takes_text(member.key) || !extra.takes_value(member.value, 0)) return false;
            unknown.push_back(member.key);
            continue;
        }
        const uint64_t bit = uint64_t{1} << number;
        if (seen & bit) return false;
        seen |= bit;
        if (!is_value(plan.fields[number], member.value, latest)) return false;
    }
    std::sort(unknown.begin(), unknown.end());
    if (std::adjacent_find(unknown.begin(), unknown.end()) != unknown.end()) return false;
    return (seen & plan.required) == plan.required;
}

// Whether many numbers, or texts, have more digits than the parser's fast way takes: it needs up to 25 us for each. Looks
// at one of LONG_DIGITS characters, and at those beside a digit.
bool has_many_long_numbers(const char *body, size_t size) {
    const auto is_digit = [](char character) { return (character >= '0' && character <= '9') || character == '.'; };
    size_t found = 0, end;
    for (size_t at = LONG_DIGITS - 1; at < size; at = end + LONG_DIGITS) {
        size_t begin = end = at;
        if (!is_digit(body[at])) continue;
        while (begin > 0 && is_digit(body[begin - 1])) begin--;
        while (end < size && is_digit(body[end])) end++;
        if (end - begin >= LONG_DIGITS && ++found > MAX_LONG_NUMBERS) return true;
    }
    return false;
}

ptrdiff_t count(Plan &plan, const char *body, size_t size, Latest latest) {
    // Neither a byte order mark, which not every version refuses, nor anything else before the first brace.
    if (size < 2 || size > MAX_BODY_BYTES || body[0] != '{') return 0;
    if (size > SHORT_BODY_BYTES && has_many_long_numbers(body, size)) return 0;
    element document, list;
    simdjson::dom::object outer;
    simdjson::dom::array items;
    if (plan.parser.parse(body, size).get(document) || document.get_object().get(outer)) return 0;
    if (outer.size() != 1 || outer.at_key(plan.name).get(list) || list.get_array().get(items)) return 0;
    ptrdiff_t records = 0;
    for (const element item : items) {
        if (!is_record(plan, item, latest)) return 0;
        records++;
    }
    return records;
}

} // namespace
