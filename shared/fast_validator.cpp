// Looks at a body without making a Python object of anything in it.
//
//     FastValidator(name, fields, keep_unknown)   of bodies {"<name>": [...]}. A field is a tuple: name, type (of TYPES),
//                                        required, least, most, choices. Raises: TypeError, ValueError, naming the field
//     .count(body, latest_s, latest_local_s)      the records of the body if validation.py would take them all, else 0.
//                                        A time must be before latest_s, one without an offset before latest_local_s,
//                                        in seconds since 1970. Raises: TypeError
//     children(text, start, end, most)   what an object or a list holds, before any of it is parsed: how many, and of
//                                        the first `most` a tuple: key (its JSON, None in a list), start, end, values
//                                        inside, depth, whether an integer in it is beyond 64 bits.
//                                        Raises: ValueError where text[start:end] is neither
//     fold(body, name, known, keep)      the list of an accepted body {"<name>": [...]}, its records with their unknown
//                                        fields in one object, "extra" (keep), or without them; None where that takes
//                                        a closer look
//
// count() parses with simdjson: what that takes is JSON in UTF-8, to the last byte. Every "return 0" and "return false"
// means "not sure", never "invalid": validation.py decides then, and words the error. So the one mistake that must not
// be made is to count what it would refuse. children() and fold() only follow strings and brackets: what they find may
// still be no JSON. Nothing here keeps a body. The interpreter's lock is held throughout.

#define PY_SSIZE_T_CLEAN
#define SIMDJSON_EXCEPTIONS 0
#include <Python.h>
#include <simdjson.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <iterator>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace {

using simdjson::dom::element;
using simdjson::dom::element_type;
using std::string_view;

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

// Names of fields, found fastest in the order in which most senders keep to them.
class Names {
  public:
    static constexpr size_t NONE = ~size_t{0};

    void add(std::string name) {
        shapes |= shape(name);
        names.push_back(std::move(name));
    }

    // The number of the name; `next` is where to look first, and moves on.
    size_t find(string_view name, size_t &next) const {
        size_t at = next;
        if (names[at] != name) {
            if (!(shapes & shape(name))) return NONE;
            do {
                at = at + 1 == names.size() ? 0 : at + 1;
                if (at == next) return NONE;
            } while (names[at] != name);
        }
        next = at + 1 == names.size() ? 0 : at + 1;
        return at;
    }

  private:
    static uint64_t shape(string_view name) {
        return name.empty() ? 0 : uint64_t{1} << ((name[name.size() / 2] * 7 + name.size()) & 63);
    }

    std::vector<std::string> names;
    uint64_t shapes = 0; // of which every name has one
};

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

// ---- values

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

// ---- bodies

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

Py_ssize_t count(Plan &plan, const char *body, size_t size, Latest latest) {
    // Neither a byte order mark, which not every version refuses, nor anything else before the first brace.
    if (size < 2 || size > MAX_BODY_BYTES || body[0] != '{') return 0;
    if (size > SHORT_BODY_BYTES && has_many_long_numbers(body, size)) return 0;
    element document, list;
    simdjson::dom::object outer;
    simdjson::dom::array items;
    if (plan.parser.parse(body, size).get(document) || document.get_object().get(outer)) return 0;
    if (outer.size() != 1 || outer.at_key(plan.name).get(list) || list.get_array().get(items)) return 0;
    Py_ssize_t records = 0;
    for (const element item : items) {
        if (!is_record(plan, item, latest)) return 0;
        records++;
    }
    return records;
}

// ---- what a container holds

struct Scanner {
    const char *at, *end;

    char skip_space() { // the next character, or 0 at the end
        while (at < end && (*at == ' ' || *at == '\n' || *at == '\r' || *at == '\t')) at++;
        return at < end ? *at : '\0';
    }

    bool skip_string() { // from its first quote to behind its last
        const char *const first = ++at;
        for (;;) {
            const void *const quote = memchr(at, '"', end - at);
            at = quote == nullptr ? end : static_cast<const char *>(quote);
            if (at == end) return false;
            const char *back = at;
            while (back > first && back[-1] == '\\') back--;
            if ((at++ - back) % 2 == 0) return true;
        }
    }

    // Whether it is an integer that 64 bits do not hold.
    bool skip_number() {
        const bool negative = *at == '-';
        at += negative;
        const char *const digits = at;
        while (at < end && *at >= '0' && *at <= '9') at++;
        const string_view number(digits, at - digits);
        const char *const behind = at;
        while (at < end && ((*at >= '0' && *at <= '9') || string_view(".eE+-").find(*at) != string_view::npos)) at++;
        const string_view most = negative ? "9223372036854775808" : "18446744073709551615";
        return behind == at && (number.size() > most.size() || (number.size() == most.size() && number > most));
    }
};

struct Child {
    long long values = 0, depth = 0;
    bool big = false;
};

// To behind the value, spaces before the next comma or bracket included. False where the text ends before.
bool skip_value(Scanner &scanner, Child &child) {
    long long depth = 0;
    while (scanner.at < scanner.end) {
        const char character = *scanner.at;
        if (character == '"') {
            if (!scanner.skip_string()) return false;
        } else if (character == '[' || character == '{') {
            scanner.at++;
            child.depth = std::max(child.depth, ++depth);
            const char next = scanner.skip_space();
            child.values += next != ']' && next != '}';
        } else if (character == ']' || character == '}') {
            if (depth-- == 0) return true;
            scanner.at++;
        } else if (character == ',') {
            if (depth == 0) return true;
            scanner.at++;
            child.values++;
        } else if (character == '-' || (character >= '0' && character <= '9')) {
            child.big |= scanner.skip_number();
        } else {
            scanner.at++;
        }
    }
    return false;
}

// Calls visit(key, start, end, child) for each child of the object or list at the scanner, until that returns false. A
// key is with its quotes, and empty in a list. Returns: nullptr, scanner.at being behind it, or what is wrong there.
template <typename Visit> const char *for_each_child(Scanner &scanner, Visit visit) {
    const char open = scanner.skip_space();
    if (open != '[' && open != '{') return "no object and no list";
    const bool keyed = open == '{';
    const char close = keyed ? '}' : ']';
    scanner.at++;
    bool first = true;
    for (char next = scanner.skip_space(); next != close || !first; next = scanner.skip_space()) {
        first = false;
        const char *key = scanner.at;
        size_t key_size = 0;
        if (keyed) {
            if (next != '"') return "no name of a field";
            if (!scanner.skip_string()) return "a name without an end";
            key_size = scanner.at - key;
            if (scanner.skip_space() != ':') return "no colon behind a name";
            scanner.at++;
            scanner.skip_space();
        }
        const char *const start = scanner.at;
        Child child;
        if (!skip_value(scanner, child)) {
            scanner.at = scanner.end;
            return "unexpected end";
        }
        if (!visit(string_view(key, key_size), start, scanner.at, child)) return "stopped";
        if (*scanner.at == close) break;
        if (*scanner.at != ',') return "a bracket that closes another";
        scanner.at++;
    }
    scanner.at++;
    scanner.skip_space();
    return nullptr;
}

PyObject *find_children(const char *text, Scanner scanner, Py_ssize_t most) {
    std::unique_ptr<PyObject, void (*)(PyObject *)> list(PyList_New(0), [](PyObject *object) { Py_XDECREF(object); });
    if (list == nullptr) return nullptr;
    Py_ssize_t count = 0;
    const char *wrong = for_each_child(scanner, [&](string_view key, const char *start, const char *end, Child child) {
        if (count++ >= most) return true;
        PyObject *item = Py_BuildValue("(y#nnLLN)", key.empty() ? nullptr : key.data(), static_cast<Py_ssize_t>(key.size()),
                                       static_cast<Py_ssize_t>(start - text), static_cast<Py_ssize_t>(end - text),
                                       child.values, child.depth, PyBool_FromLong(child.big));
        const bool added = item != nullptr && PyList_Append(list.get(), item) == 0;
        Py_XDECREF(item);
        return added;
    });
    if (PyErr_Occurred()) return nullptr;
    if (!wrong && scanner.at != scanner.end) wrong = "more behind the end";
    if (wrong) return PyErr_Format(PyExc_ValueError, "%s at byte %zd", wrong, static_cast<Py_ssize_t>(scanner.at - text));
    return Py_BuildValue("(nN)", count, list.release());
}

// Appends the record with its unknown fields in one object, `extra`. False where a name has an escape: it may be any.
bool fold_record(Scanner &scanner, const Names &known, bool keep, std::string &folded) {
    std::string extra;
    size_t next = 0;
    folded += '{';
    const char *wrong = for_each_child(scanner, [&](string_view key, const char *start, const char *end, Child) {
        const bool is_known = known.find(key, next) != Names::NONE;
        if (key.empty() || key.find('\\') != string_view::npos) return false;
        if (is_known || (keep && key != "\"created_at\"")) {
            std::string &target = is_known ? folded : extra;
            target.append(key).append(":").append(start, end - start).append(",");
        }
        return true;
    });
    if (!extra.empty()) {
        extra.back() = '}';
        folded.append("\"extra\":{").append(extra).append(",");
    }
    if (folded.back() == ',') folded.pop_back();
    folded += "},";
    return wrong == nullptr;
}

// Of a body with this key (in quotes) only.
bool fold_list(Scanner scanner, string_view name, const Names &known, bool keep, std::string &folded) {
    if (scanner.skip_space() != '{') return false;
    scanner.at++;
    scanner.skip_space();
    if (string_view(scanner.at, scanner.end - scanner.at).substr(0, name.size()) != name) return false;
    scanner.at += name.size();
    if (scanner.skip_space() != ':') return false;
    scanner.at++;
    if (scanner.skip_space() != '[') return false;
    do {
        scanner.at++;
        if (scanner.skip_space() != '{' || !fold_record(scanner, known, keep, folded)) return false;
    } while (scanner.skip_space() == ',');
    if (scanner.at == scanner.end || *scanner.at++ != ']' || scanner.skip_space() != '}') return false;
    scanner.at++;
    scanner.skip_space();
    return scanner.at == scanner.end;
}

// ---- Python's side

PyObject *children(PyObject *, PyObject *const *args, Py_ssize_t nargs) {
    Py_buffer text;
    if (nargs != 4) {
        PyErr_SetString(PyExc_TypeError, "children(text, start, end, most)");
        return nullptr;
    }
    const Py_ssize_t start = PyLong_AsSsize_t(args[1]), end = PyLong_AsSsize_t(args[2]), most = PyLong_AsSsize_t(args[3]);
    if (PyErr_Occurred() || PyObject_GetBuffer(args[0], &text, PyBUF_SIMPLE) != 0) return nullptr;
    PyObject *found = nullptr;
    const auto *bytes = static_cast<const char *>(text.buf);
    if (0 <= start && start <= end && end <= text.len)
        found = find_children(bytes, {bytes + start, bytes + end}, most);
    else
        PyErr_SetString(PyExc_ValueError, "start and end do not lie in the text");
    PyBuffer_Release(&text);
    return found;
}

PyObject *fold(PyObject *, PyObject *args) {
    Py_buffer text;
    const char *name;
    PyObject *names;
    int keep;
    if (!PyArg_ParseTuple(args, "y*sO!p", &text, &name, &PyTuple_Type, &names, &keep)) return nullptr;
    Names known;
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(names); i++)
        if (const char *field = PyUnicode_AsUTF8(PyTuple_GET_ITEM(names, i))) known.add('"' + std::string(field) + '"');
    const auto *bytes = static_cast<const char *>(text.buf);
    std::string folded = "[";
    Scanner scanner{bytes, bytes + text.len};
    const bool good = fold_list(scanner, '"' + std::string(name) + '"', known, keep != 0, folded);
    PyBuffer_Release(&text);
    if (PyErr_Occurred()) return nullptr;
    if (!good) Py_RETURN_NONE;
    folded.back() = ']';
    return PyBytes_FromStringAndSize(folded.data(), static_cast<Py_ssize_t>(folded.size()));
}

struct FastValidator {
    PyObject_HEAD
    Plan *plan;
};

bool add_field(Plan &plan, PyObject *item) {
    const char *name, *type;
    int required;
    double least, most;
    PyObject *choices;
    if (!PyTuple_Check(item)) {
        PyErr_SetString(PyExc_TypeError, "a field is a tuple");
        return false;
    }
    if (!PyArg_ParseTuple(item, "sspddO!", &name, &type, &required, &least, &most, &PyTuple_Type, &choices)) return false;
    const auto *known = std::find_if(std::begin(TYPES), std::end(TYPES), [&](auto each) { return !strcmp(each, type); });
    if (known == std::end(TYPES)) {
        PyErr_Format(PyExc_ValueError, "%s: no type of a field is called %s", name, type);
        return false;
    }
    plan.names.add(name);
    Field field{static_cast<Type>(known - std::begin(TYPES)), required != 0, least, most, {}};
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(choices); i++) {
        Py_ssize_t size;
        const char *choice = PyUnicode_AsUTF8AndSize(PyTuple_GET_ITEM(choices, i), &size);
        if (choice == nullptr) return false;
        field.choices.emplace_back(choice, size);
    }
    if (field.required) plan.required |= uint64_t{1} << plan.fields.size();
    plan.fields.push_back(std::move(field));
    return true;
}

PyObject *validator_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    const char *name;
    PyObject *fields;
    int keep_unknown;
    static const char *names[] = {"name", "fields", "keep_unknown", nullptr};
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "sO!p", const_cast<char **>(names), &name, &PyTuple_Type, &fields,
                                     &keep_unknown))
        return nullptr;
    const Py_ssize_t count = PyTuple_GET_SIZE(fields);
    if (count < 1 || count > static_cast<Py_ssize_t>(MAX_FIELDS))
        return PyErr_Format(PyExc_ValueError, "%s: 1 to %zu fields, not %zd", name, MAX_FIELDS, count);
    auto plan = std::make_unique<Plan>();
    plan->name = name;
    plan->keep_unknown = keep_unknown != 0;
    for (Py_ssize_t i = 0; i < count; i++)
        if (!add_field(*plan, PyTuple_GET_ITEM(fields, i))) return nullptr;
    PyObject *self = type->tp_alloc(type, 0);
    if (self != nullptr) reinterpret_cast<FastValidator *>(self)->plan = plan.release();
    return self;
}

void validator_dealloc(PyObject *self) {
    PyTypeObject *type = Py_TYPE(self);
    delete reinterpret_cast<FastValidator *>(self)->plan;
    type->tp_free(self);
    Py_DECREF(type);
}

PyObject *validator_count(PyObject *self, PyObject *const *args, Py_ssize_t nargs) {
    if (nargs != 3) {
        PyErr_SetString(PyExc_TypeError, "count(body, latest_s, latest_local_s)");
        return nullptr;
    }
    const Latest latest{PyLong_AsLongLong(args[1]), PyLong_AsLongLong(args[2])};
    Py_buffer body;
    if (PyErr_Occurred() || PyObject_GetBuffer(args[0], &body, PyBUF_SIMPLE) != 0) return nullptr;
    auto &plan = *reinterpret_cast<FastValidator *>(self)->plan;
    const Py_ssize_t records = count(plan, static_cast<const char *>(body.buf), body.len, latest);
    PyBuffer_Release(&body);
    return PyLong_FromSsize_t(records);
}

template <typename Function> PyCFunction as_method(Function function) {
    return reinterpret_cast<PyCFunction>(reinterpret_cast<void *>(function));
}

PyMethodDef validator_methods[] = {
    {"count", as_method(validator_count), METH_FASTCALL, nullptr},
    {nullptr, nullptr, 0, nullptr},
};
PyType_Slot validator_slots[] = {
    {Py_tp_new, reinterpret_cast<void *>(validator_new)},
    {Py_tp_dealloc, reinterpret_cast<void *>(validator_dealloc)},
    {Py_tp_methods, validator_methods},
    {0, nullptr},
};
PyType_Spec validator_spec = {
    "shared.fast_validator.FastValidator", sizeof(FastValidator), 0, Py_TPFLAGS_DEFAULT, validator_slots,
};
PyMethodDef module_methods[] = {
    {"children", as_method(children), METH_FASTCALL, nullptr},
    {"fold", fold, METH_VARARGS, nullptr},
    {nullptr, nullptr, 0, nullptr},
};

// What the parser must refuse for us, whatever its version: a lone surrogate, which is no UTF-8.
bool accepts_lone_surrogates() {
    simdjson::dom::parser parser;
    for (const char *text : {R"(["\udc00"])", R"(["\ud800"])", R"(["\ud800\u0041"])"})
        if (!parser.parse(text, strlen(text)).error()) return true;
    return false;
}

int execute(PyObject *module) {
    if (accepts_lone_surrogates()) {
        PyErr_SetString(PyExc_ImportError, "this simdjson takes lone surrogates; 3.0 and later are known not to");
        return -1;
    }
    PyObject *type = PyType_FromSpec(&validator_spec);
    if (type == nullptr) return -1;
    const int added = PyModule_AddObjectRef(module, "FastValidator", type);
    Py_DECREF(type);
    return added;
}

PyModuleDef_Slot module_slots[] = {
    {Py_mod_exec, reinterpret_cast<void *>(execute)},
    {0, nullptr},
};
PyModuleDef module_definition = {
    PyModuleDef_HEAD_INIT, "fast_validator", nullptr, 0, module_methods, module_slots, nullptr, nullptr, nullptr,
};

} // namespace

PyMODINIT_FUNC PyInit_fast_validator() { return PyModuleDef_Init(&module_definition); }
