// SPDX-License-Identifier: Apache-2.0
// The JSON reader: recursive descent over RFC 8259. Nesting is limited so that a hostile file cannot overflow the stack, and the
// number of values so that it cannot fill the memory: each takes a hundred times the room of its two bytes in the file.
#include "json.h"

#include <cmath>
#include <cstdlib>
#include <limits>

#include "common.h"

namespace bert {

namespace {
const char* const kKindNames[] = {"null", "a boolean", "a number", "a string", "an array", "an object"};
constexpr int kMaxDepth = 64;
constexpr int kMaxValues = 200'000;  // a header has eight for each tensor, 4,000 of BERT large in 8 bits
}  // namespace

class JsonReader {
 public:
  explicit JsonReader(std::string_view text) : text_(text) {}

  Json document() {
    Json value = read(0);
    skip_space();
    if (position_ != text_.size()) wrong("the end of the document");
    return value;
  }

 private:
  [[noreturn]] void wrong(const char* expected) const { fail("JSON: expected ", expected, " at byte ", position_); }

  void skip_space() {
    while (position_ < text_.size() && std::string_view(" \t\r\n").find(text_[position_]) != std::string_view::npos) ++position_;
  }

  bool take(char wanted) {
    skip_space();
    if (position_ >= text_.size() || text_[position_] != wanted) return false;
    ++position_;
    return true;
  }

  bool take(std::string_view word) {
    if (text_.substr(position_, word.size()) != word) return false;
    position_ += word.size();
    return true;
  }

  Json read(int depth) {
    if (depth > kMaxDepth) fail("JSON: more than ", kMaxDepth, " levels of nesting at byte ", position_);
    if (++values_ > kMaxValues) fail("JSON: more than ", kMaxValues, " values at byte ", position_);
    skip_space();
    Json value;
    if (position_ >= text_.size()) wrong("a value");
    if (take('{')) {
      value.kind_ = Json::Kind::object;
      if (take('}')) return value;
      do {
        if (!take('"')) wrong("a key");
        std::string key = read_string();
        if (!take(':')) wrong("':'");
        Json member = read(depth + 1);
        const auto [place, fresh] = value.members_.emplace(std::move(key), std::move(member));
        if (!fresh) fail("JSON: the key \"", place->first, "\" stands twice");
      } while (take(','));
      if (!take('}')) wrong("',' or '}'");
    } else if (take('[')) {
      value.kind_ = Json::Kind::array;
      if (take(']')) return value;
      do value.items_.push_back(read(depth + 1));
      while (take(','));
      if (!take(']')) wrong("',' or ']'");
    } else if (take('"')) {
      value.kind_ = Json::Kind::string;
      value.string_ = read_string();
    } else if (take("true")) {
      value.kind_ = Json::Kind::boolean;
      value.boolean_ = true;
    } else if (take("false")) {
      value.kind_ = Json::Kind::boolean;
    } else if (!take("null")) {
      value.kind_ = Json::Kind::number;
      value.number_ = read_number();
    }
    return value;
  }

  double read_number() {
    size_t end = position_;
    while (end < text_.size() && std::string_view("+-.eE0123456789").find(text_[end]) != std::string_view::npos) ++end;
    const std::string digits(text_.substr(position_, end - position_));
    char* stop = nullptr;
    const double number = std::strtod(digits.c_str(), &stop);
    if (digits.empty() || *stop != '\0' || !std::isfinite(number)) wrong("a value");
    position_ = end;
    return number;
  }

  unsigned read_hex() {
    unsigned code = 0;
    for (int i = 0; i < 4; ++i, ++position_) {
      const char c = position_ < text_.size() ? text_[position_] : ' ';
      const int digit = c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
      if (digit < 0) wrong("four hexadecimal digits");
      code = code * 16 + digit;
    }
    return code;
  }

  static void append_utf8(std::string& out, unsigned code) {
    if (code < 0x80) {
      out += static_cast<char>(code);
      return;
    }
    const int extra = code < 0x800 ? 1 : code < 0x10000 ? 2 : 3;
    const unsigned lead[] = {0, 0xC0, 0xE0, 0xF0};
    out += static_cast<char>(lead[extra] | (code >> (6 * extra)));
    for (int shift = 6 * (extra - 1); shift >= 0; shift -= 6) out += static_cast<char>(0x80 | ((code >> shift) & 0x3F));
  }

  std::string read_string() {
    std::string out;
    while (position_ < text_.size() && text_[position_] != '"') {
      const char c = text_[position_++];
      if (c != '\\') {
        out += c;
        continue;
      }
      const char escape = position_ < text_.size() ? text_[position_++] : '\0';
      const std::string_view from = "\"\\/bfnrt", to = "\"\\/\b\f\n\r\t";
      if (escape == 'u') {
        unsigned code = read_hex();
        if (code >= 0xD800 && code < 0xDC00 && take("\\u")) code = 0x10000 + ((code - 0xD800) << 10) + (read_hex() - 0xDC00);
        append_utf8(out, code);
      } else if (const size_t at = from.find(escape); at != std::string_view::npos) {
        out += to[at];
      } else {
        wrong("an escape sequence");
      }
    }
    if (position_ >= text_.size()) wrong("a closing quotation mark");
    ++position_;
    return out;
  }

  std::string_view text_;
  size_t position_ = 0;
  int values_ = 0;
};

Json Json::parse(std::string_view text) { return JsonReader(text).document(); }

void Json::expect(Kind kind) const {
  if (kind_ != kind) fail("JSON: expected ", kKindNames[static_cast<int>(kind)], ", found ", kKindNames[static_cast<int>(kind_)]);
}

const Json& Json::at(const std::string& key) const {
  expect(Kind::object);
  const auto found = members_.find(key);
  if (found == members_.end()) fail("JSON: there is no member \"", key, "\"");
  return found->second;
}

const std::map<std::string, Json>& Json::members() const { return expect(Kind::object), members_; }
const std::vector<Json>& Json::items() const { return expect(Kind::array), items_; }
const std::string& Json::string() const { return expect(Kind::string), string_; }
double Json::number() const { return expect(Kind::number), number_; }
bool Json::boolean() const { return expect(Kind::boolean), boolean_; }

long long Json::integer() const {
  const double value = number();
  if (value != std::floor(value) || std::fabs(value) > 9e15) fail("JSON: expected a whole number, found ", value);
  return static_cast<long long>(value);
}

int Json::integer32() const {
  const long long value = integer();
  if (value < std::numeric_limits<int>::min() || value > std::numeric_limits<int>::max()) fail("JSON: expected a number of 32 bits, found ", value);
  return static_cast<int>(value);
}

}  // namespace bert
