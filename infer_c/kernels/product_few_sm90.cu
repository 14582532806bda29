// SPDX-License-Identifier: Apache-2.0
// Launches of the few-rows product.
#include "launch.h"
#include "product_few.h"

namespace bert {

namespace {

template <Format kFormat>
FewKernel eight_bit_kernel(Epilogue epilogue, const Cut& cut) {
  switch (epilogue) {
    case Epilogue::residual: return few_kernel<kFormat, Epilogue::residual>(cut);
    case Epilogue::bias: return few_kernel<kFormat, Epilogue::bias>(cut);
    case Epilogue::gelu_tanh: return few_kernel<kFormat, Epilogue::gelu_tanh>(cut);
    case Epilogue::gelu_erf: return few_kernel<kFormat, Epilogue::gelu_erf>(cut);
    default: fail("8-bit products have no folded norm");
  }
}

FewKernel kernel_of(Format format, Epilogue epilogue, const Cut& cut) {
  if (format == Format::int8) return eight_bit_kernel<Format::int8>(epilogue, cut);
  if (format == Format::fp8) return eight_bit_kernel<Format::fp8>(epilogue, cut);
  switch (epilogue) {
    case Epilogue::norm: return few_kernel<Format::half, Epilogue::norm>(cut);
    case Epilogue::norm_gelu_tanh: return few_kernel<Format::half, Epilogue::norm_gelu_tanh>(cut);
    case Epilogue::norm_gelu_erf: return few_kernel<Format::half, Epilogue::norm_gelu_erf>(cut);
    case Epilogue::residual: return few_kernel<Format::half, Epilogue::residual>(cut);
    default: fail("FP16 products have their bias in the folded norm");
  }
}

template <size_t kCount>
void prepare(Format format, const Cut (&cuts)[kCount], std::initializer_list<Epilogue> epilogues) {
  for (const Cut& cut : cuts) {
    for (const Epilogue epilogue : epilogues) allow_shared(kernel_of(format, epilogue, cut), 227 * 1024);
  }
}

}  // namespace

void prepare_product_few(Format format) {
  if (format == Format::half) {
    prepare(format, kHalfCuts, {Epilogue::norm, Epilogue::norm_gelu_tanh, Epilogue::norm_gelu_erf, Epilogue::residual});
  } else {
    prepare(format, kEightBitCuts, {Epilogue::bias, Epilogue::gelu_tanh, Epilogue::gelu_erf, Epilogue::residual});
  }
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
  if (!v.prefetch) p.next_bytes = 0;
  const size_t shared = static_cast<size_t>(how.stages) * cut.stage_bytes() + (how.reuse ? 0 : cut.received_bytes()) + cut.side_bytes();
  const dim3 grid(cluster, ceil_div(ceil_div(p.columns, cut.columns), v.share), ceil_div(ceil_div(rows, cut.rows), v.pair));
  launch(stream, {grid, dim3(2 * cut.rows + 32), shared, cluster, true}, kernel_of(format, epilogue, cut), input, weights, p, how);
}

}  // namespace bert
