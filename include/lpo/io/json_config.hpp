// SPDX-License-Identifier: MIT
// JsonConfig: a config.json with typed getters that remember what was read, so that unknown keys are seen and kept.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include <lpo/base/config.hpp>
#include <lpo/base/error.hpp>
#include <lpo/base/extents.hpp>
#include <lpo/io/file.hpp>
#include <lpo/io/json.hpp>

namespace lpo::inline LPO_ABI {

namespace detail {

template <class T>
inline constexpr bool is_vector = false;
template <class T>
inline constexpr bool is_vector<std::vector<T>> = true;
template <class T>
inline constexpr bool is_optional = false;
template <class T>
inline constexpr bool is_optional<std::optional<T>> = true;

/// What a message says was expected.
template <class T>
std::string config_type_name() {
  if constexpr (std::is_same_v<T, bool>)
    return "true or false";
  else if constexpr (std::is_unsigned_v<T>)
    return "a non-negative integer";
  else if constexpr (std::is_integral_v<T>)
    return "an integer";
  else if constexpr (std::is_floating_point_v<T>)
    return "a number";
  else if constexpr (is_vector<T>)
    return "an array, each element " + config_type_name<typename T::value_type>();
  else if constexpr (is_optional<T>)
    return "null or " + config_type_name<typename T::value_type>();
  else {
    static_assert(
        std::is_same_v<T, std::string>,
        "lpo JsonConfig: no JSON form for this type; use bool, a number, std::string, std::vector or std::optional");
    return "a string";
  }
}

/// Converts without losing anything; false if the JSON value is not a `T`.
template <class T>
bool config_value(const OrderedJson& json, T& value) {
  if constexpr (std::is_same_v<T, bool>) {
    if (!json.is_boolean()) return false;
    value = json.template get<bool>();
  } else if constexpr (std::is_integral_v<T>) {
    if (json.is_number_unsigned()) {
      const auto number = json.template get<std::uint64_t>();
      if (number > static_cast<std::uint64_t>(std::numeric_limits<T>::max())) return false;
      value = static_cast<T>(number);
    } else {
      if (!json.is_number_integer()) return false;
      const auto number = json.template get<std::int64_t>();
      if (!std::in_range<T>(number)) return false;
      value = static_cast<T>(number);
    }
  } else if constexpr (std::is_floating_point_v<T>) {
    if (!json.is_number()) return false;
    value = static_cast<T>(json.template get<double>());
  } else if constexpr (std::is_same_v<T, std::string>) {
    if (!json.is_string()) return false;
    value = json.template get_ref<const std::string&>();
  } else if constexpr (is_optional<T>) {
    if (json.is_null()) {
      value.reset();
      return true;
    }
    return config_value(json, value.emplace());
  } else {
    if (!json.is_array()) return false;
    value.clear();
    for (const OrderedJson& element : json) {
      typename T::value_type item{};
      if (!config_value(element, item)) return false;
      value.push_back(std::move(item));
    }
  }
  return true;
}

template <class T>
OrderedJson config_json(const T& value) {
  if constexpr (is_vector<T>) {
    OrderedJson array = OrderedJson::array();
    for (const auto& element : value) array.push_back(config_json<typename T::value_type>(element));
    return array;
  } else if constexpr (is_optional<T>) {
    return value ? config_json(*value) : OrderedJson(nullptr);
  } else {
    return OrderedJson(value);
  }
}

}  // namespace detail

/// One JSON object of settings. `T` of the getters: bool, integers, float, double, std::string, vectors and optionals
/// of them. Keys that were asked for count as known; `unread_keys` are the rest. Writing gives back all keys in their
/// order.
class JsonConfig {
 public:
  /// An empty object; `name` stands for the file in messages.
  explicit JsonConfig(std::string name = "config") : name_(std::move(name)), object_(OrderedJson::object()) {}

  /// FileError if the file is not a JSON object.
  static JsonConfig from_file(const std::string& path) { return from_text(read_text_file(path, text_limit), path); }

  /// Infinities and NaN, which Python writes (diffusers' lambda_min_clipped is one), count as null.
  static JsonConfig from_text(std::string_view text, const std::string& name) {
    JsonConfig config(name);
    config.object_ = parse_json<OrderedJson>(detail::null_for_non_finite(text), "config", name);
    if (!config.object_.is_object())
      throw FileError(message("[config] ", name, ": is ", json_kind(config.object_), ", expected an object"));
    return config;
  }

  const std::string& name() const { return name_; }

  /// True if the key is there and not null.
  bool has(const std::string& key) const { return value_of(key) != nullptr; }

  /// The value of a key that must be there.
  template <class T>
  T get(const std::string& key) const {
    const OrderedJson* const json = find(key);
    if (json == nullptr)
      throw FileError(message("[config] ", name_, ": no key \"", key, "\", expected ", detail::config_type_name<T>(),
                              detail::near_keys(key, all_keys())));
    return converted<T>(key, *json);
  }

  /// The value of a key, or `fallback` if the key is missing or null (as diffusers' defaults work).
  template <class T>
  T get_or(const std::string& key, T fallback) const {
    const OrderedJson* const json = value_of(key);
    return json == nullptr ? std::move(fallback) : converted<T>(key, *json);
  }
  std::string get_or(const std::string& key, const char* fallback) const {
    return get_or<std::string>(key, std::string(fallback));
  }

  /// A value per level: one value that counts for all, or an array of exactly `count` (diffusers' int-or-tuple
  /// settings).
  template <class T>
  std::vector<T> get_per_level(const std::string& key, std::size_t count) const {
    const OrderedJson* const json = find(key);
    if (json == nullptr || !json->is_array()) return std::vector<T>(count, get<T>(key));
    std::vector<T> values = converted<std::vector<T>>(key, *json);
    if (values.size() != count)
      throw FileError(
          message("[config] ", name_, ": key \"", key, "\" has ", values.size(), " values, expected one or ", count));
    return values;
  }
  template <class T>
  std::vector<T> get_per_level_or(const std::string& key, std::size_t count, T fallback) const {
    return has(key) ? get_per_level<T>(key, count) : std::vector<T>(count, fallback);
  }

  /// The object under a key.
  JsonConfig child(const std::string& key) const {
    const OrderedJson* const json = find(key);
    if (json == nullptr || !json->is_object())
      throw FileError(message("[config] ", name_, ": key \"", key, "\" is ",
                              json == nullptr ? std::string("missing") : json_kind(*json), ", expected an object"));
    JsonConfig config(name_ + ":" + key);
    config.object_ = *json;
    return config;
  }

  /// Sets or replaces a value; a new key goes to the end.
  template <class T>
  void set(const std::string& key, const T& value) {
    if constexpr (std::is_convertible_v<T, std::string_view>) {
      object_[key] = std::string(std::string_view(value));
    } else {
      object_[key] = detail::config_json(value);
    }
    read_.insert(key);
  }
  /// Sets a key to null.
  void set_null(const std::string& key) {
    object_[key] = nullptr;
    read_.insert(key);
  }
  /// Sets a key to an object.
  void set_child(const std::string& key, const JsonConfig& child) {
    object_[key] = child.object_;
    read_.insert(key);
  }

  /// Keys nobody asked for, in file order; those that begin with '_' are diffusers' own bookkeeping and not listed.
  std::vector<std::string> unread_keys() const {
    std::vector<std::string> unread;
    for (const std::string& key : all_keys())
      if (!key.starts_with('_') && !read_.contains(key)) unread.push_back(key);
    return unread;
  }

  /// All keys, in file order.
  std::vector<std::string> all_keys() const {
    std::vector<std::string> keys;
    for (const auto& [key, value] : object_.items()) keys.push_back(key);
    return keys;
  }

  /// The object itself, unknown keys included.
  const OrderedJson& original() const { return object_; }

  /// The object as text, indented by 2, with a newline at the end.
  std::string text() const { return object_.dump(2, ' ', false, OrderedJson::error_handler_t::replace) + "\n"; }

  /// Writes the object, entirely or not at all.
  void write(const std::string& path) const { write_text_file(path, text()); }

 private:
  // Configs have a few kilobytes; the ordered object's look-up is linear, so a hostile giant would take forever.
  static constexpr std::size_t text_limit = std::size_t{1} << 22;

  const OrderedJson* find(const std::string& key) const {
    read_.insert(key);
    const auto found = object_.find(key);
    return found == object_.end() ? nullptr : &*found;
  }
  const OrderedJson* value_of(const std::string& key) const {
    const OrderedJson* const json = find(key);
    return json == nullptr || json->is_null() ? nullptr : json;
  }

  template <class T>
  T converted(const std::string& key, const OrderedJson& json) const {
    T value{};
    if (!detail::config_value(json, value))
      throw FileError(message("[config] ", name_, ": key \"", key, "\" is ", json_preview(json), ", expected ",
                              detail::config_type_name<T>()));
    return value;
  }

  std::string name_;
  OrderedJson object_;
  mutable std::set<std::string, std::less<>> read_;
};

/// Compares a config with what a compiled model is, and reports all differences at once.
class ConfigCheck {
 public:
  explicit ConfigCheck(const JsonConfig& config) : config_(config) {}

  /// The key must equal `compiled`; where the file has no such key (or null) the file means `absent`.
  template <class T>
  void expect(const std::string& key, const T& compiled, const T& absent) {
    compare(key, config_.get_or<T>(key, absent), compiled);
  }
  /// The key must be there and equal `compiled`.
  template <class T>
  void expect(const std::string& key, const T& compiled) {
    compare(key, config_.get<T>(key), compiled);
  }

  /// FileError that lists each differing key with both values, or nothing if all agree.
  void finish() const {
    if (differences_.empty()) return;
    throw FileError(message("[config] ", config_.name(), ": does not match the compiled model:", differences_));
  }

 private:
  template <class T>
  void compare(const std::string& key, const T& found, const T& compiled) {
    if (found == compiled) return;
    differences_ += message(differences_.empty() ? " " : "; ", key, " is ", json_preview(detail::config_json(found)),
                            " in the file, ", json_preview(detail::config_json(compiled)), " in the model");
  }

  const JsonConfig& config_;
  std::string differences_;
};

}  // namespace lpo::inline LPO_ABI
