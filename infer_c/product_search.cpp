// SPDX-License-Identifier: Apache-2.0
#include "product_search.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "kernels/launch.h"
#include "kernels/product_few.h"
#include "replay.h"

namespace bert {

namespace {

using Choice = ProductSearch::Choice;

// Search for the choice whose pass takes least time: one product at a time, or two.
class Descent {
 public:
  // `pass` enqueues a pass with `choice`, which the search changes.
  Descent(cudaStream_t stream, const std::function<void()>& pass, Choice& choice, std::function<bool(int, const Variant&)> exists)
      : stream_(stream), pass_(pass), choice_(choice), exists_(std::move(exists)), best_(stream, pass), pass_ms_(best_.milliseconds(watch_)) {}

  // Go on from another choice, which may be slower; false where it does not run.
  bool restart(const Choice& other) {
    return without_failure(other, [&] { best_ = Replay(stream_, pass_); });
  }

  // Take a candidate if it is better; returns its time over that of the best before, infinity where it does not run.
  float attempt(const Choice& candidate) {
    const Choice before = choice_;
    float ratio = std::numeric_limits<float>::infinity();
    without_failure(candidate, [&] {
      Replay other(stream_, pass_);
      ratio = is_long() ? settled_time_ratio(other, best_, pass_ms_, watch_)
                        : time_ratio(other, best_, std::clamp(static_cast<int>(20 / pass_ms_), 3, 25), watch_);
      if (is_better(ratio)) {
        best_ = std::move(other);
      } else {
        choice_ = before;
      }
    });
    return ratio;
  }

  // Do something with another choice in force; where that fails, the search goes on with the one before, and false is returned.
  template <class Work>
  bool without_failure(const Choice& other, Work&& work) {
    const Choice before = std::exchange(choice_, other);
    try {
      work();
      return true;
    } catch (const Error&) {
      choice_ = before;
      best_ = Replay(stream_, pass_);  // throws, as the next line does, where not the choice was at fault but the GPU or its memory
      best_.milliseconds(watch_);
      return false;
    }
  }

  // Go over the wanted candidates of each product in turn, then over refinements of the best.
  template <class Wanted>
  void run(int rounds, Wanted wanted) {
    for (int round = 0; round < rounds; ++round) {
      for (int i = 0; i < kProducts; ++i) {
        seen_[i].clear();
        for (Variant candidate : candidates[i]) {
          if (round > 0 && candidate.way == Way::few && choice_[i].way == Way::few) candidate.early = choice_[i].early, candidate.prefetch = choice_[i].prefetch;
          if (wanted(candidate)) attempt_one(i, candidate);
        }
      }
      for (int i = 0; i < kProducts; ++i) {
        for (size_t k = 0; k < refinements(choice_[i]).size(); ++k) {
          const Variant candidate = refinements(choice_[i])[k];
          if (wanted(candidate)) attempt_one(i, candidate);
        }
      }
    }
  }

  // Two neighbours at once, each among the best that the last round saw; returns whether that found anything.
  bool run_pairs() {
    const Choice before = choice_;
    for (int i = 0; i < kProducts; ++i) {
      const int next = (i + 1) % kProducts;
      const std::vector<Variant> left = best_seen(i), right = best_seen(next);
      for (const Variant& a : left) {
        for (const Variant& b : right) {
          Choice other = choice_;
          other[i] = a, other[next] = b;
          attempt(other);
        }
      }
    }
    return choice_ != before;
  }

  std::array<std::vector<Variant>, kProducts> candidates;

 private:
  bool is_long() const { return pass_ms_ > 2; }  // from where on power limits a pass
  // Long passes begin with what is known to be good, and a percent is within what they vary by.
  bool is_better(float ratio) const { return ratio < (is_long() ? 0.99f : 1.f); }

  void attempt_one(int i, const Variant& candidate) {
    if (candidate == choice_[i] || !exists_(i, candidate)) return;
    Choice other = choice_;
    other[i] = candidate;
    const Variant before = choice_[i];
    const float ratio = attempt(other);
    if (is_better(ratio)) {
      for (auto& [time, variant] : seen_[i]) time /= ratio;
      seen_[i].emplace_back(1 / ratio, before);
    } else if (std::isfinite(ratio)) {
      seen_[i].emplace_back(ratio, candidate);
    }
  }

  // One of each cut.
  std::vector<Variant> best_seen(int i) {
    constexpr size_t kMost = 5;
    std::stable_sort(seen_[i].begin(), seen_[i].end(), [](const auto& a, const auto& b) { return a.first < b.first; });
    std::vector<Variant> best;
    for (const auto& [ratio, variant] : seen_[i]) {
      const bool known = std::any_of(best.begin(), best.end(), [&v = variant](const Variant& b) { return cut_of(b) == cut_of(v); });
      if (!known && best.size() < kMost) best.push_back(variant);
    }
    return best;
  }

  cudaStream_t stream_;
  const std::function<void()>& pass_;
  Choice& choice_;
  std::function<bool(int, const Variant&)> exists_;
  const Stopwatch watch_;
  Replay best_;
  const float pass_ms_;  // of the first choice
  std::array<std::vector<std::pair<float, Variant>>, kProducts> seen_;  // others than the best: time over the best's, of the last round
};

}  // namespace

ProductSearch::ProductSearch(const Config& config, Format format) : format_(format), multiprocessors_(multiprocessor_count()) {
  const int box = 128 / bytes_of(format), hidden = config.hidden_size, inner = config.intermediate_size, boxes = ceil_div(hidden, box);
  sizes_ = {{{3 * hidden, boxes}, {hidden, boxes}, {inner, boxes}, {hidden, ceil_div(inner, box)}}};
}

// By whole tiles up to 8, where each tile changes the picture; then by half and whole powers of two up to 256 tiles, where the last round
// of tiles still tells (what was found for 12 tiles took 11 % too long for 16, for 128 tiles 5 % for 96); then by powers of two.
int ProductSearch::row_key(int rows) {
  if (rows <= 8 * kRowBox) return round_up(rows, kRowBox);
  int key = 8 * kRowBox;
  while (key < rows) {
    if (key < 256 * kRowBox && rows <= key / 2 * 3) return key / 2 * 3;
    key *= 2;
  }
  return key;
}

ProductSearch::Choice ProductSearch::at(int rows) const {
  const auto found = choices_.find(row_key(rows));
  if (found != choices_.end()) return found->second;
  Choice choice;
  for (int i = 0; i < kProducts; ++i) choice[i] = guess(rows, i);
  return choice;
}

// Before any timing: the persistent kernel where there is enough for it, otherwise what is expected to be fastest. Its tiles are those
// that BERT-large ran fastest with at 4,096 to 49,152 rows on four GPUs (docs/kernels.md).
Variant ProductSearch::guess(int rows, int product) const {
  const ProductSize& size = sizes_[product];
  constexpr int kHalfTiles[kProducts] = {1, 0, 1, 2}, kEightBitTiles[kProducts] = {1, 2, 1, 2};  // of kPersistentTiles
  if (4 * ceil_div(rows, kRowBox) * ceil_div(size.columns, 256) >= 3 * multiprocessors_) {
    return Variant::persistent_of(kPersistentTiles[(format_ == Format::half ? kHalfTiles : kEightBitTiles)[product]]);
  }
  return variants(format_, rows, size.columns, size.boxes, multiprocessors_).front();
}

void ProductSearch::run(cudaStream_t stream, int rows, const std::function<void()>& pass, bool library) {
  if (knows(rows)) return;
  try {
    search(stream, rows, pass, library);
  } catch (...) {
    choices_.erase(row_key(rows));  // what was being tried is not what was found
    throw;
  }
}

void ProductSearch::search(cudaStream_t stream, int rows, const std::function<void()>& pass, bool library) {
  // Kernels are loaded, and a library sets itself up, at their first launch, which must not happen during capture.
  const auto warm = [&] {
    pass();
    CUDA_CHECK(cudaStreamSynchronize(stream));
  };
  warm();
  const Choice guessed = at(rows);
  Choice& choice = choices_[row_key(rows)] = guessed;
  Descent descent(stream, pass, choice, [&](int i, const Variant& v) { return v.exists(format_, sizes_[i].boxes); });
  for (int i = 0; i < kProducts; ++i) descent.candidates[i] = variants(format_, rows, sizes_[i].columns, sizes_[i].boxes, multiprocessors_);
  const auto any = [](const Variant&) { return true; };
  if (rows > 8 * kRowBox) {
    descent.run(1, any);
  } else {
    // Each product's best depends on its neighbours', so short passes, whose search is short too, are gone over again and again.
    descent.run(2, any);
    // Neighbours overlap most where the blocks of both fit on a multiprocessor, which no change of one product alone brings.
    const auto beside = [](const Variant& v) { return v.way == Way::few && v.resident >= 2; };
    const Choice first = choice;
    Choice other = choice;
    for (int i = 0; i < kProducts; ++i) {
      const auto found = std::find_if(descent.candidates[i].begin(), descent.candidates[i].end(), beside);
      if (found != descent.candidates[i].end()) other[i] = *found;
    }
    if (descent.restart(other)) {
      descent.run(2, beside);
      descent.attempt(first);
    }
    descent.run(1, any);
    if (descent.run_pairs()) descent.run(1, any);
  }
  if (!library) return;
  Choice all;
  all.fill(Variant::of_library());
  const Choice own = choice;
  if (!descent.without_failure(all, warm)) return;
  choice = own;
  descent.attempt(all);
}

std::string ProductSearch::json() const {
  std::string out = "{";
  for (const auto& [key, choice] : choices_) {
    out += (out.size() > 1 ? ", \"" : "\"") + std::to_string(key) + "\": [";
    for (int i = 0; i < kProducts; ++i) {
      out += i ? ", [" : "[";
      const std::vector<int> numbers = choice[i].numbers();
      for (size_t j = 0; j < numbers.size(); ++j) out += text(j ? ", " : "", numbers[j]);
      out += "]";
    }
    out += "]";
  }
  return out + "}";
}

void ProductSearch::read(const std::string& json) {
  Json root;
  try {
    root = Json::parse(json);
    root.members();
  } catch (const Error& error) {
    refuse("choices is no object in JSON (", error.what(), "); give what choices() returned");
  }
  for (const auto& [key, list] : root.members()) {
    try {
      const int rows = Json::parse(key).integer32();
      if (rows < 1 || rows > kMostTokens || row_key(rows) != rows) continue;
      if (const std::optional<Choice> choice = known(list)) choices_[rows] = *choice;
    } catch (const Error&) {  // damaged
    }
  }
}

// What JSON says of four products, where this version can run them so.
std::optional<Choice> ProductSearch::known(const Json& list) const {
  Choice choice;
  int count = 0;
  for (const Json& entry : list.items()) {
    if (count == kProducts) break;
    std::vector<int> numbers;
    for (const Json& n : entry.items()) numbers.push_back(n.integer32());
    const std::optional<Variant> v = Variant::from(numbers);
    if (!v || !v->exists(format_, sizes_[count].boxes)) return {};
    if (count > 0 && v->library() != choice[0].library()) return {};  // cuBLASLt's all or none
    choice[count++] = *v;
  }
  if (count < kProducts) return {};
  return choice;
}

}  // namespace bert
