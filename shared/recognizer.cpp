// Says of a body how many valid records it holds, without making a Python object of any of them; 0 where it cannot tell.
//
// simdjson parses: what it takes is JSON in UTF-8, to the last byte. What is done here is to hold every field against
// its sort and its limits. Whatever is not plainly valid is for bodies.validate() to decide, and to word; so the only
// mistake that must not be made here is to count what validate() would refuse, or decode() would read as something
// else. Every "return 0" and "return false" below means "not plain", never "invalid".
//
// Nothing here keeps a body, and nothing depends on the body before. The interpreter's lock is held throughout.

#define PY_SSIZE_T_CLEAN
#define SIMDJSON_EXCEPTIONS 0
#include <Python.h>
#include <simdjson.h>

#include <cstring>
#include <iterator>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace {

using simdjson::dom::element;
using simdjson::dom::element_type;

enum class Sort { text, integer, number, time, choice, null };
constexpr const char *SORTS[] = {"text", "integer", "number", "time", "choice", "null"};

struct Field {
    std::string name;
    Sort sort;
    bool required;
    bool nullable;
    double least; // of a text: bytes
    double most;
    std::vector<std::string> choices;
};

constexpr size_t MAX_FIELDS = 64; // one bit each
constexpr size_t MAX_BODY_BYTES = 1024 * 1024; // the parser keeps its buffers, which are some times as large

struct Plan {
    std::string name;
    std::vector<Field> fields;
    uint64_t required = 0;
    simdjson::dom::parser parser{MAX_BODY_BYTES};
};

// ---- values

// The number that two digits are; larger than any limit if they are none.
int two(const char *digits) {
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

// YYYY-MM-DDTHH:MM:SS, with up to six digits of a second, and Z, an offset of some hours, or nothing, which is UTC.
bool is_time(std::string_view text, int64_t latest_s) {
    if (text.size() < 19) return false;
    const char *at = text.data();
    const int year = two(at) * 100 + two(at + 2), month = two(at + 5), day = two(at + 8);
    const int hour = two(at + 11), minute = two(at + 14), second = two(at + 17);
    if (at[4] != '-' || at[7] != '-' || at[10] != 'T' || at[13] != ':' || at[16] != ':') return false;
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
    if (!text.empty() && text != "Z") {
        if (text.size() != 6 || (text[0] != '+' && text[0] != '-') || text[3] != ':') return false;
        const int hours = two(text.data() + 1), minutes = two(text.data() + 4);
        if (hours > 14 || minutes > 59) return false;
        seconds -= (text[0] == '+' ? 60 : -60) * (hours * 60 + minutes);
    }
    return seconds < latest_s;
}

bool is_text(const Field &field, std::string_view text, int64_t latest_s) {
    switch (field.sort) {
    case Sort::text:
        return text.size() >= field.least && text.size() <= field.most;
    case Sort::time:
        return is_time(text, latest_s);
    case Sort::choice:
        for (const auto &choice : field.choices)
            if (text == choice) return true;
        return false;
    default:
        return false;
    }
}

bool is_value(const Field &field, element value, int64_t latest_s) {
    switch (value.type()) {
    case element_type::STRING:
        return is_text(field, value.get_string().value_unsafe(), latest_s);
    case element_type::INT64: {
        const auto number = static_cast<double>(value.get_int64().value_unsafe());
        return (field.sort == Sort::integer || field.sort == Sort::number) && number >= field.least && number <= field.most;
    }
    case element_type::DOUBLE: {
        const double number = value.get_double().value_unsafe();
        return field.sort == Sort::number && number >= field.least && number <= field.most;
    }
    case element_type::NULL_VALUE:
        return field.nullable;
    default:
        return false;
    }
}

// ---- bodies

bool is_record(const Plan &plan, element item, int64_t latest_s) {
    simdjson::dom::object record;
    if (item.get_object().get(record)) return false;
    const size_t fields = plan.fields.size();
    uint64_t seen = 0;
    size_t next = 0; // most senders keep to one order
    for (const auto pair : record) {
        size_t tried = 0;
        while (plan.fields[next].name != pair.key) {
            if (++tried == fields) return false; // an unknown field
            next = next + 1 == fields ? 0 : next + 1;
        }
        const uint64_t bit = uint64_t{1} << next;
        if (seen & bit) return false; // parsers take the first or the last of two
        seen |= bit;
        if (!is_value(plan.fields[next], pair.value, latest_s)) return false;
        next = next + 1 == fields ? 0 : next + 1;
    }
    return (seen & plan.required) == plan.required;
}

Py_ssize_t count(Plan &plan, const char *body, size_t size, int64_t latest_s) {
    // Neither a byte order mark, which not every version refuses, nor anything else before the first brace.
    if (size < 2 || size > MAX_BODY_BYTES || body[0] != '{') return 0;
    element document, list;
    simdjson::dom::object outer;
    simdjson::dom::array items;
    if (plan.parser.parse(body, size).get(document) || document.get_object().get(outer)) return 0;
    if (outer.size() != 1 || outer.at_key(plan.name).get(list) || list.get_array().get(items)) return 0;
    Py_ssize_t records = 0;
    for (const element item : items) {
        if (!is_record(plan, item, latest_s)) return 0;
        records++;
    }
    return records;
}

// ---- Python's side
//
//     Recognizer(name, fields)     of bodies {"<name>": [...]}; a field is a tuple: name, sort (of SORTS), required,
//                                  nullable, least, most, choices. Raises: TypeError, ValueError, naming the field
//     .count(body, latest_s)       the records of the body if all are valid, else 0; a time must be before latest_s,
//                                  in seconds since 1970 UTC. Raises: TypeError

struct Recognizer {
    PyObject_HEAD
    Plan *plan;
};

bool add_field(Plan &plan, PyObject *item) {
    const char *name, *sort;
    int required, nullable;
    double least, most;
    PyObject *choices;
    if (!PyTuple_Check(item)) {
        PyErr_SetString(PyExc_TypeError, "a field is a tuple");
        return false;
    }
    if (!PyArg_ParseTuple(item, "ssppddO!", &name, &sort, &required, &nullable, &least, &most, &PyTuple_Type, &choices))
        return false;
    Field field{name, Sort::null, required != 0, nullable != 0, least, most, {}};
    size_t number = 0;
    while (number < std::size(SORTS) && strcmp(SORTS[number], sort) != 0) number++;
    if (number == std::size(SORTS)) {
        PyErr_Format(PyExc_ValueError, "%s: no sort of value is called %s", name, sort);
        return false;
    }
    field.sort = static_cast<Sort>(number);
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(choices); i++) {
        const char *choice = PyUnicode_AsUTF8(PyTuple_GET_ITEM(choices, i));
        if (choice == nullptr) return false;
        field.choices.emplace_back(choice);
    }
    if (field.required) plan.required |= uint64_t{1} << plan.fields.size();
    plan.fields.push_back(std::move(field));
    return true;
}

PyObject *recognizer_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    const char *name;
    PyObject *fields;
    static const char *names[] = {"name", "fields", nullptr};
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "sO!", const_cast<char **>(names), &name, &PyTuple_Type, &fields))
        return nullptr;
    const Py_ssize_t count = PyTuple_GET_SIZE(fields);
    if (count < 1 || count > static_cast<Py_ssize_t>(MAX_FIELDS))
        return PyErr_Format(PyExc_ValueError, "%s: 1 to %zu fields, not %zd", name, MAX_FIELDS, count);
    auto plan = std::make_unique<Plan>();
    plan->name = name;
    for (Py_ssize_t i = 0; i < count; i++)
        if (!add_field(*plan, PyTuple_GET_ITEM(fields, i))) return nullptr;
    PyObject *self = type->tp_alloc(type, 0);
    if (self != nullptr) reinterpret_cast<Recognizer *>(self)->plan = plan.release();
    return self;
}

void recognizer_dealloc(PyObject *self) {
    PyTypeObject *type = Py_TYPE(self);
    delete reinterpret_cast<Recognizer *>(self)->plan;
    type->tp_free(self);
    Py_DECREF(type);
}

PyObject *recognizer_count(PyObject *self, PyObject *const *args, Py_ssize_t nargs) {
    if (nargs != 2) {
        PyErr_SetString(PyExc_TypeError, "count(body, latest_s)");
        return nullptr;
    }
    const long long latest_s = PyLong_AsLongLong(args[1]);
    Py_buffer body;
    if ((latest_s == -1 && PyErr_Occurred()) || PyObject_GetBuffer(args[0], &body, PyBUF_SIMPLE) != 0) return nullptr;
    auto &plan = *reinterpret_cast<Recognizer *>(self)->plan;
    const Py_ssize_t records = count(plan, static_cast<const char *>(body.buf), body.len, latest_s);
    PyBuffer_Release(&body);
    return PyLong_FromSsize_t(records);
}

PyMethodDef recognizer_methods[] = {
    {"count", reinterpret_cast<PyCFunction>(reinterpret_cast<void *>(recognizer_count)), METH_FASTCALL, nullptr},
    {nullptr, nullptr, 0, nullptr},
};
PyType_Slot recognizer_slots[] = {
    {Py_tp_new, reinterpret_cast<void *>(recognizer_new)},
    {Py_tp_dealloc, reinterpret_cast<void *>(recognizer_dealloc)},
    {Py_tp_methods, recognizer_methods},
    {0, nullptr},
};
PyType_Spec recognizer_spec = {"shared.recognizer.Recognizer", sizeof(Recognizer), 0, Py_TPFLAGS_DEFAULT, recognizer_slots};

// What the parser must refuse for us, whatever its version: half of a character, which is no UTF-8.
bool takes_halves() {
    simdjson::dom::parser parser;
    for (const char *text : {R"(["\udc00"])", R"(["\ud800"])", R"(["\ud800\u0041"])"})
        if (!parser.parse(text, strlen(text)).error()) return true;
    return false;
}

int execute(PyObject *module) {
    if (takes_halves()) {
        PyErr_SetString(PyExc_ImportError, "this simdjson takes halves of characters; 3.0 and later are known not to");
        return -1;
    }
    PyObject *type = PyType_FromSpec(&recognizer_spec);
    if (type == nullptr) return -1;
    const int added = PyModule_AddObjectRef(module, "Recognizer", type);
    Py_DECREF(type);
    return added;
}

PyModuleDef_Slot module_slots[] = {
    {Py_mod_exec, reinterpret_cast<void *>(execute)},
    {0, nullptr},
};
PyModuleDef module_definition = {
    PyModuleDef_HEAD_INIT, "recognizer", nullptr, 0, nullptr, module_slots, nullptr, nullptr, nullptr,
};

} // namespace

PyMODINIT_FUNC PyInit_recognizer() { return PyModuleDef_Init(&module_definition); }
