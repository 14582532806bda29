// SPDX-License-Identifier: Apache-2.0
// Launches of the few-rows product.
#include "launch.h"
#include "product_few.h"
#include "product_instances.h"

namespace bert {

namespace {

FewKernel kernel_of(Format format, Epilogue epilogue, const Cut& cut) {
  return product_instance(format, epilogue, [&](auto f, auto e) { return few_kernel<f.value, e.value>(cut); });
}

}  // namespace

void prepare_product_few(Format format) {
  for_epilogues(format, [&](Epilogue epilogue) {
    const auto prepare = [&](const auto& cuts) {
      for (const Cut& cut : cuts) allow_shared(kernel_of(format, epilogue, cut), 227 * 1024);
    };
    format == Format::half ? prepare(kHalfCuts) : prepare(kEightBitCuts);
  });
}

void product_few(cudaStream_t stream, const Variant& v, Format format, Epilogue epilogue, const CUtensorMap& input, const CUtensorMap& weights,
                 const Product& product, int rows) {
  const int boxes = ceil_div(product.depth * bytes_of(format), kLineBytes), cluster = v.split * v.share * v.pair;
  if (v.way != Way::few || !v.exists(format, boxes)) {
    std::string numbers;
    for (const int n : v.numbers()) numbers += text(" ", n);
    fail("no product kernel runs the variant", numbers, " at a depth of ", product.depth);
  }
  const Cut cut = cut_of(v);
  const FewLaunch how = few_launch(v, boxes);
  Product p = product;
  if (v.prefetch != 1) p.next_bytes = 0;
  const size_t shared = static_cast<size_t>(how.stages) * cut.stage_bytes() + (how.reuse ? 0 : cut.received_bytes()) + cut.side_bytes();
  const dim3 grid(cluster, ceil_div(ceil_div(p.columns, cut.columns), v.share), ceil_div(ceil_div(rows, cut.rows), v.pair));
  launch(stream, {grid, dim3(2 * cut.rows + kFeeders * 32), shared, cluster, true}, kernel_of(format, epilogue, cut), how, p, input, weights);
}

}  // namespace bert
