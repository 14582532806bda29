// SPDX-License-Identifier: Apache-2.0
// A small JSON reader: enough for a safetensors header and for the engine metadata inside it. Reading only.
#pragma once

#include <map>
#include <string>
#include <string_view>
#include <vector>

namespace bert {

class Json {
 public:
  enum class Kind { null, boolean, number, string, array, object };

  // Parse one complete document; throw Error that names the byte where it goes wrong, or a key that stands twice.
  static Json parse(std::string_view text);

  Kind kind() const { return kind_; }
  bool has(const std::string& key) const { return kind_ == Kind::object && members_.count(key) != 0; }

  // Access with a check of the kind; `what` in the messages is the key or the place.
  const Json& at(const std::string& key) const;
  const std::map<std::string, Json>& members() const;
  const std::vector<Json>& items() const;
  const std::string& string() const;
  double number() const;
  long long integer() const;
  int integer32() const;  // one that an int holds
  bool boolean() const;

 private:
  friend class JsonReader;
  void expect(Kind kind) const;

  Kind kind_ = Kind::null;
  bool boolean_ = false;
  double number_ = 0;
  std::string string_;
  std::vector<Json> items_;
  std::map<std::string, Json> members_;
};

}  // namespace bert
