// SPDX-License-Identifier: MIT
// Pickle: reads Python pickles as data. Nothing is imported or executed: calls stay descriptions of calls.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <lpo/base/config.hpp>
#include <lpo/base/error.hpp>
#include <lpo/io/unicode.hpp>

namespace lpo::inline LPO_ABI {

/// One Python object of a pickle. `items` are numbers of other objects in it.
struct PickleValue {
  enum class Kind : std::uint8_t {
    none,
    boolean,
    integer,
    number,
    text,
    bytes,
    list,
    tuple,
    dict,       ///< items are key, value, key, value …
    global,     ///< `text` is "module.name"
    call,       ///< items are the callable and its tuple of arguments
    persistent  ///< item is what the pickler's persistent_id returned
  };
  Kind kind = Kind::none;
  std::int64_t integer = 0;  ///< of an integer; 0 or 1 of a boolean
  double number = 0;
  std::string_view text;  ///< of a text (valid UTF-8), bytes, or global
  std::vector<std::uint32_t> items;
};

/// A whole pickle: its objects, and which of them is the result. Objects may refer to each other in circles.
struct Pickle {
  std::vector<PickleValue> values;
  std::uint32_t root = 0;

  const PickleValue& operator[](std::uint32_t number) const { return values[number]; }
};

namespace detail {

/// The stack machine of Python's pickle module (protocols 2 to 5) without the instructions that need classes.
class PickleMachine {
 public:
  using Kind = PickleValue::Kind;

  PickleMachine(std::string_view bytes, const std::string& file, std::span<const std::string_view> globals)
      : bytes_(bytes), file_(file), globals_(globals) {
    if (bytes.size() > byte_limit)
      throw FileError(message("[pickle] ", file, ": has ", bytes.size(), " bytes, expected at most ", byte_limit));
  }

  Pickle run() {
    if (bytes_.empty() || bytes_[0] != '\x80') fail("does not begin with PROTO; protocols 0 and 1 are not read");
    while (step()) {
    }
    pickle_.root = pop();
    return std::move(pickle_);
  }

 private:
  // A tensor takes about 150 bytes and 25 objects, so this is far more than any checkpoint has.
  static constexpr std::size_t byte_limit = std::size_t{1} << 24;
  static constexpr std::size_t value_limit = std::size_t{1} << 20;
  static constexpr std::uint32_t absent = 0xffffffff;

  template <class... Parts>
  [[noreturn]] LPO_COLD void fail(const Parts&... parts) const {
    throw FileError(message("[pickle] ", file_, ": byte ", begin_, ": ", parts...));
  }

  std::string_view take(std::uint64_t count) {
    if (count > bytes_.size() - at_) fail("is cut off");
    const std::string_view piece = bytes_.substr(at_, static_cast<std::size_t>(count));
    at_ += static_cast<std::size_t>(count);
    return piece;
  }

  /// An unsigned little-endian number of `width` bytes.
  std::uint64_t take_number(std::uint64_t width) {
    std::uint64_t value = 0;
    int shift = 0;
    for (const char byte : take(width)) {
      value |= std::uint64_t{static_cast<unsigned char>(byte)} << shift;
      shift += 8;
    }
    return value;
  }

  std::string_view take_line() {
    const std::size_t end = bytes_.find('\n', at_);
    if (end == std::string_view::npos) fail("is cut off");
    const std::string_view line = take(end - at_);
    ++at_;
    return line;
  }

  void push(PickleValue value) {
    if (pickle_.values.size() == value_limit) fail("has more than ", value_limit, " objects");
    stack_.push_back(static_cast<std::uint32_t>(pickle_.values.size()));
    pickle_.values.push_back(std::move(value));
  }
  void push(Kind kind, std::vector<std::uint32_t> items) { push({kind, 0, 0, {}, std::move(items)}); }
  void push_integer(std::int64_t value, Kind kind = Kind::integer) { push({kind, value, 0, {}, {}}); }

  void push_text(std::uint64_t length_width, Kind kind = Kind::text) {
    const std::string_view text = take(take_number(length_width));
    if (kind == Kind::text && encode_utf8(decode_utf8(text)) != text) fail("has a text that is not valid UTF-8");
    push({kind, 0, 0, text, {}});
  }

  /// Python's long: two's complement in `width` bytes.
  void push_long(std::uint64_t width) {
    if (width > 8) fail("has an integer of ", width, " bytes, expected at most 8");
    std::uint64_t value = take_number(width);
    if (width > 0 && width < 8 && (value >> (8 * width - 1)) != 0) value |= ~std::uint64_t{0} << (8 * width);
    push_integer(static_cast<std::int64_t>(value));
  }

  /// Only what the caller knows; `text` is the caller's string, which outlives the pickle.
  void push_global(std::string_view module, std::string_view name) {
    const std::string full = std::string(module) + "." + std::string(name);
    for (const std::string_view known : globals_)
      if (known == full) return push({Kind::global, 0, 0, known, {}});
    fail("refuses GLOBAL \"", full.substr(0, 200),
         "\": only tensors, numbers, texts, lists and dictionaries are read, and nothing is executed; save the "
         "state_dict alone");
  }

  std::size_t floor() const { return marks_.empty() ? 0 : marks_.back(); }

  std::uint32_t top() const {
    if (stack_.size() <= floor()) fail("takes from an empty stack");
    return stack_.back();
  }
  std::uint32_t pop() {
    const std::uint32_t number = top();
    stack_.pop_back();
    return number;
  }
  std::vector<std::uint32_t> pop(std::size_t count) {
    if (stack_.size() - floor() < count) fail("takes from an empty stack");
    const std::vector<std::uint32_t> items(stack_.end() - static_cast<std::ptrdiff_t>(count), stack_.end());
    stack_.resize(stack_.size() - count);
    return items;
  }
  std::vector<std::uint32_t> pop_to_mark() {
    if (marks_.empty()) fail("has no mark to return to");
    auto items = pop(stack_.size() - marks_.back());
    marks_.pop_back();
    return items;
  }

  void push_dict(std::vector<std::uint32_t> items) {
    if (items.size() % 2 != 0) fail("has a dictionary key without a value");
    push(Kind::dict, std::move(items));
  }

  /// Appends to the list or dictionary on top of the stack.
  void append(Kind kind, const std::vector<std::uint32_t>& items) {
    PickleValue& target = pickle_.values[top()];
    if (target.kind != kind) fail("adds items to something that is no ", kind == Kind::list ? "list" : "dictionary");
    if (kind == Kind::dict && items.size() % 2 != 0) fail("has a dictionary key without a value");
    target.items.insert(target.items.end(), items.begin(), items.end());
  }

  void remember(std::uint64_t slot) {
    if (slot >= value_limit) fail("remembers an object as number ", slot, ", expected less than ", value_limit);
    if (slot >= memo_.size()) memo_.resize(static_cast<std::size_t>(slot) + 1, absent);
    if (memo_[slot] == absent) ++remembered_;
    memo_[slot] = top();
  }

  void recall(std::uint64_t slot) {
    if (slot >= memo_.size() || memo_[slot] == absent) fail("recalls object ", slot, ", which it never remembered");
    stack_.push_back(memo_[slot]);
  }

  /// An OrderedDict is a dictionary; other calls are left to the caller, who knows the callable.
  void reduce() {
    const std::uint32_t arguments = pop(), callable = pop();
    const PickleValue& called = pickle_.values[callable];
    if (called.kind != Kind::global || pickle_.values[arguments].kind != Kind::tuple)
      fail("calls something that is no function with a tuple of arguments");
    if (called.text != "collections.OrderedDict") return push(Kind::call, {callable, arguments});
    if (!pickle_.values[arguments].items.empty()) fail("makes an OrderedDict from arguments, expected none");
    push_dict({});
  }

  /// Attributes of an OrderedDict (a state_dict's _metadata) say nothing about tensors; others are refused.
  void build() {
    pop();
    if (pickle_.values[top()].kind != Kind::dict) fail("refuses BUILD on anything but a dictionary");
  }

  /// Executes one instruction; false after STOP.
  bool step() {
    begin_ = at_;
    const auto code = static_cast<unsigned char>(take(1)[0]);
    switch (code) {
      case 0x80: {  // PROTO
        const std::uint64_t version = take_number(1);
        if (version < 2 || version > 5) fail("has protocol ", version, ", expected 2 to 5");
        break;
      }
      case 0x95:  // FRAME: its length only helps streams
        take(8);
        break;
      case '.':  // STOP
        return false;
      case '(':  // MARK
        marks_.push_back(stack_.size());
        break;
      case '0':  // POP
        pop();
        break;
      case '1':  // POP_MARK
        pop_to_mark();
        break;
      case '2':  // DUP
        stack_.push_back(top());
        break;
      case 'N':
        push(Kind::none, {});
        break;
      case 0x88:  // NEWTRUE
      case 0x89:  // NEWFALSE
        push_integer(code == 0x88 ? 1 : 0, Kind::boolean);
        break;
      case 'J':  // BININT
        push_long(4);
        break;
      case 'K':  // BININT1
      case 'M':  // BININT2
        push_integer(static_cast<std::int64_t>(take_number(code == 'K' ? 1 : 2)));
        break;
      case 0x8a:  // LONG1
      case 0x8b:  // LONG4
        push_long(take_number(code == 0x8a ? 1 : 4));
        break;
      case 'G': {  // BINFLOAT, big-endian
        std::uint64_t bits = 0;
        for (const char byte : take(8)) bits = (bits << 8) | static_cast<unsigned char>(byte);
        push({Kind::number, 0, std::bit_cast<double>(bits), {}, {}});
        break;
      }
      case 'U':   // SHORT_BINSTRING, Python 2
      case 0x8c:  // SHORT_BINUNICODE
        push_text(1);
        break;
      case 'T':  // BINSTRING, Python 2
      case 'X':  // BINUNICODE
        push_text(4);
        break;
      case 0x8d:  // BINUNICODE8
        push_text(8);
        break;
      case 'C':  // SHORT_BINBYTES
        push_text(1, Kind::bytes);
        break;
      case 'B':  // BINBYTES
        push_text(4, Kind::bytes);
        break;
      case ']':  // EMPTY_LIST
        push(Kind::list, {});
        break;
      case 'l':  // LIST
        push(Kind::list, pop_to_mark());
        break;
      case ')':  // EMPTY_TUPLE
        push(Kind::tuple, {});
        break;
      case 't':  // TUPLE
        push(Kind::tuple, pop_to_mark());
        break;
      case 0x85:  // TUPLE1
      case 0x86:
      case 0x87:  // TUPLE3
        push(Kind::tuple, pop(code - std::size_t{0x84}));
        break;
      case '}':  // EMPTY_DICT
        push_dict({});
        break;
      case 'd':  // DICT
        push_dict(pop_to_mark());
        break;
      case 'a':  // APPEND
        append(Kind::list, pop(1));
        break;
      case 'e':  // APPENDS
        append(Kind::list, pop_to_mark());
        break;
      case 's':  // SETITEM
        append(Kind::dict, pop(2));
        break;
      case 'u':  // SETITEMS
        append(Kind::dict, pop_to_mark());
        break;
      case 'q':  // BINPUT
      case 'r':  // LONG_BINPUT
        remember(take_number(code == 'q' ? 1 : 4));
        break;
      case 0x94:  // MEMOIZE
        remember(remembered_);
        break;
      case 'h':  // BINGET
      case 'j':  // LONG_BINGET
        recall(take_number(code == 'h' ? 1 : 4));
        break;
      case 'c': {  // GLOBAL
        const std::string_view module = take_line(), name = take_line();
        push_global(module, name);
        break;
      }
      case 0x93: {  // STACK_GLOBAL
        const PickleValue &name = pickle_.values[pop()], &module = pickle_.values[pop()];
        if (name.kind != Kind::text || module.kind != Kind::text) fail("names a GLOBAL by something that is no text");
        push_global(module.text, name.text);
        break;
      }
      case 'Q':  // BINPERSID
        push(Kind::persistent, pop(1));
        break;
      case 'R':
        reduce();
        break;
      case 'b':
        build();
        break;
      default:
        refuse(code);
    }
    return true;
  }

  [[noreturn]] LPO_COLD void refuse(unsigned char code) const {
    static constexpr std::pair<unsigned char, const char*> names[] = {{'i', "INST"},         {'o', "OBJ"},
                                                                      {0x81, "NEWOBJ"},      {0x92, "NEWOBJ_EX"},
                                                                      {'P', "PERSID"},       {0x82, "EXT1"},
                                                                      {0x83, "EXT2"},        {0x84, "EXT4"},
                                                                      {'I', "INT"},          {'L', "LONG"},
                                                                      {'F', "FLOAT"},        {'S', "STRING"},
                                                                      {'V', "UNICODE"},      {'p', "PUT"},
                                                                      {'g', "GET"},          {0x8f, "EMPTY_SET"},
                                                                      {0x90, "ADDITEMS"},    {0x91, "FROZENSET"},
                                                                      {0x8e, "BINBYTES8"},   {0x96, "BYTEARRAY8"},
                                                                      {0x97, "NEXT_BUFFER"}, {0x98, "READONLY_BUFFER"}};
    for (const auto& [known, name] : names)
      if (known == code) fail("refuses ", name, ": only tensors, numbers, texts, lists and dictionaries are read");
    fail("has the unknown instruction ", static_cast<int>(code), "; it is damaged");
  }

  std::string_view bytes_;
  const std::string& file_;
  std::span<const std::string_view> globals_;
  std::size_t at_ = 0, begin_ = 0;
  Pickle pickle_;
  std::vector<std::uint32_t> stack_;
  std::vector<std::size_t> marks_;
  std::vector<std::uint32_t> memo_;
  std::uint64_t remembered_ = 0;
};

}  // namespace detail

/// Reads the pickle at the begin of `bytes`. A GLOBAL that is not in `globals` ("module.name"), an instruction that
/// would make an object of a class, or damage is a FileError that says what and where. Texts of the result point into
/// `bytes`, names of globals into `globals`. Instructions: pickletools.py of CPython.
inline Pickle parse_pickle(std::string_view bytes, const std::string& file, std::span<const std::string_view> globals) {
  return detail::PickleMachine(bytes, file, globals).run();
}

}  // namespace lpo::inline LPO_ABI
