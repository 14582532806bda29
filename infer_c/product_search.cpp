// SPDX-License-Identifier: Apache-2.0
#include "product_search.h"

#include <algorithm>
#include <cstdlib>
#include <utility>

#include "json.h"
#include "kernels/launch.h"
#include "replay.h"

namespace bert {

namespace {

constexpr int kRounds = 2;

}  // namespace

ProductSearch::ProductSearch(const Config& config, Format format) : format_(format), multiprocessors_(multiprocessor_count()) {
  const int box = 128 / bytes_of(format), hidden = config.hidden_size, inner = config.intermediate_size, boxes = ceil_div(hidden, box);
  sizes_ = {{{3 * hidden, boxes}, {hidden, boxes}, {inner, boxes}, {hidden, ceil_div(inner, box)}}};
}

// Row counts that share a choice: by whole tiles up to 8, where each tile changes the picture, then by powers of two.
int ProductSearch::row_key(int rows) {
  if (rows <= 8 * kRowBox) return round_up(rows, kRowBox);
  int key = 8 * kRowBox;
  while (key < rows) key *= 2;
  return key;
}

ProductSearch::Choice ProductSearch::at(int rows) const {
  const auto found = choices_.find(row_key(rows));
  if (found != choices_.end()) return found->second;
  Choice choice;
  for (int i = 0; i < kProducts; ++i) choice[i] = guess(rows, sizes_[i]);
  return choice;
}

// Before any timing: the persistent kernel where there is enough for it, otherwise what is expected to be fastest.
Variant ProductSearch::guess(int rows, const ProductSize& size) const {
  if (ceil_div(rows, kRowBox) * ceil_div(size.columns, 256) >= multiprocessors_) return persistent_variants().front();
  return variants(format_, rows, size.columns, size.boxes, multiprocessors_).front();
}

void ProductSearch::run(cudaStream_t stream, int rows, const std::function<void()>& pass, bool library) {
  const int key = row_key(rows);
  if (choices_.count(key) != 0) return;
  // Kernels are loaded, and a library sets itself up, at their first launch, which must not happen during capture.
  const auto warm = [&] {
    pass();
    CUDA_CHECK(cudaStreamSynchronize(stream));
  };
  warm();
  choices_[key] = at(rows);
  Choice& choice = choices_[key];
  const Stopwatch watch;
  Replay best(stream, pass);
  const int runs = std::clamp(static_cast<int>(20 / best.milliseconds(watch)), 3, 25);
  const auto attempt = [&](const Choice& candidate) {
    const Choice before = choice;
    choice = candidate;
    Replay other(stream, pass);
    if (faster(other, best, runs, watch)) {
      best = std::move(other);
    } else {
      choice = before;
    }
  };
  const auto attempt_one = [&](int i, const Variant& candidate) {
    if (candidate == choice[i] || !candidate.exists(format_, sizes_[i].boxes)) return;
    Choice other = choice;
    other[i] = candidate;
    attempt(other);
  };
  std::array<std::vector<Variant>, kProducts> candidates;
  for (int i = 0; i < kProducts; ++i) candidates[i] = variants(format_, rows, sizes_[i].columns, sizes_[i].boxes, multiprocessors_);
  const bool brief = rows <= 8 * kRowBox;
  // Each product's best depends on its neighbours', so short passes, whose search is short too, are gone over again.
  const auto descend = [&](auto wanted) {
    for (int round = 0; round < (brief ? kRounds : 1); ++round) {
      for (int i = 0; i < kProducts; ++i) {
        for (Variant candidate : candidates[i]) {
          if (!wanted(candidate)) continue;
          if (round > 0 && candidate.way == Way::few && choice[i].way == Way::few) candidate.early = choice[i].early, candidate.prefetch = choice[i].prefetch;
          attempt_one(i, candidate);
        }
      }
      for (int i = 0; i < kProducts; ++i) {
        for (size_t k = 0; k < refinements(choice[i]).size(); ++k) {
          const Variant candidate = refinements(choice[i])[k];
          if (wanted(candidate)) attempt_one(i, candidate);
        }
      }
    }
  };
  descend([](const Variant&) { return true; });
  if (brief) {
    // Neighbours overlap most where the blocks of both fit on a multiprocessor, which no change of one product alone brings.
    const auto beside = [](const Variant& v) { return v.way == Way::few && v.resident == 2; };
    const Choice first = choice;
    for (int i = 0; i < kProducts; ++i) {
      const auto found = std::find_if(candidates[i].begin(), candidates[i].end(), beside);
      if (found != candidates[i].end()) choice[i] = *found;
    }
    best = Replay(stream, pass);
    descend(beside);
    attempt(first);
  }
  if (!library) return;
  Choice all;
  all.fill(Variant::of_library());
  const Choice own = std::exchange(choice, all);
  warm();
  choice = own;
  attempt(all);
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
  const Json root = Json::parse(json);
  for (const auto& [key, list] : root.members()) {
    Choice choice;
    int count = 0;
    for (const Json& entry : list.items()) {
      if (count == kProducts) break;
      std::vector<int> numbers;
      for (const Json& n : entry.items()) numbers.push_back(static_cast<int>(n.integer()));
      const std::optional<Variant> v = Variant::from(numbers);
      if (!v || !v->exists(format_, sizes_[count].boxes)) break;
      if (count > 0 && v->library() != choice[0].library()) break;  // cuBLASLt's all or none
      choice[count++] = *v;
    }
    if (count == kProducts) choices_[std::atoi(key.c_str())] = choice;
  }
}

}  // namespace bert
