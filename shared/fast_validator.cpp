// The Python module around record_counter.h and json_scanner.h.
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
// Nothing here keeps a body. The interpreter's lock is held throughout.

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <iterator>
#include <memory>

#include "record_counter.h"

namespace {

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
