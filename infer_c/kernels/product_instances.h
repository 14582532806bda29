// SPDX-License-Identifier: Apache-2.0
// Which epilogues the products of a format have, and the way from run-time values to the instance of a kernel template.
#pragma once

#include <type_traits>

#include "product_sm90.h"

namespace bert {

constexpr Epilogue kHalfEpilogues[] = {Epilogue::norm, Epilogue::norm_gelu_tanh, Epilogue::norm_gelu_erf, Epilogue::residual};
constexpr Epilogue kEightBitEpilogues[] = {Epilogue::bias, Epilogue::gelu_tanh, Epilogue::gelu_erf, Epilogue::residual};

template <Format kFormat>
using FormatOf = std::integral_constant<Format, kFormat>;
template <Epilogue kEpilogue>
using EpilogueOf = std::integral_constant<Epilogue, kEpilogue>;

// pick(FormatOf, EpilogueOf) returns the instance.
template <Format kFormat, class Pick>
auto eight_bit_instance(Epilogue epilogue, Pick pick) {
  switch (epilogue) {
    case Epilogue::residual: return pick(FormatOf<kFormat>{}, EpilogueOf<Epilogue::residual>{});
    case Epilogue::bias: return pick(FormatOf<kFormat>{}, EpilogueOf<Epilogue::bias>{});
    case Epilogue::gelu_tanh: return pick(FormatOf<kFormat>{}, EpilogueOf<Epilogue::gelu_tanh>{});
    case Epilogue::gelu_erf: return pick(FormatOf<kFormat>{}, EpilogueOf<Epilogue::gelu_erf>{});
    default: fail("8-bit products have no folded norm");
  }
}

template <class Pick>
auto product_instance(Format format, Epilogue epilogue, Pick pick) {
  using Half = FormatOf<Format::half>;
  if (format == Format::int8) return eight_bit_instance<Format::int8>(epilogue, pick);
  if (format == Format::fp8) return eight_bit_instance<Format::fp8>(epilogue, pick);
  switch (epilogue) {
    case Epilogue::norm: return pick(Half{}, EpilogueOf<Epilogue::norm>{});
    case Epilogue::norm_gelu_tanh: return pick(Half{}, EpilogueOf<Epilogue::norm_gelu_tanh>{});
    case Epilogue::norm_gelu_erf: return pick(Half{}, EpilogueOf<Epilogue::norm_gelu_erf>{});
    case Epilogue::residual: return pick(Half{}, EpilogueOf<Epilogue::residual>{});
    default: fail("FP16 products have their bias in the folded norm");
  }
}

// Call `prepare` with each epilogue of a format.
template <class Prepare>
void for_epilogues(Format format, Prepare prepare) {
  for (const Epilogue epilogue : format == Format::half ? kHalfEpilogues : kEightBitEpilogues) prepare(epilogue);
}

}  // namespace bert
