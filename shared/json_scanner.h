// Follows the strings and brackets of a JSON text, without parsing it: what it finds may still be no JSON.

#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>
#include <vector>

namespace {

using std::string_view;

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

} // namespace
