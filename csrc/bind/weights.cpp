// SPDX-License-Identifier: Apache-2.0
// weights.cpp: packing of a linear layer's matrix.
#include "../cpu/packed_weight.h"
#include "../cpu/quantized_rows.h"
#include "../cpu/team.h"
#include "bind.h"
#include "params.h"

namespace pagedserve::bind {

namespace py = pybind11;
using cpu::PackWeightParams;

void bind_weights(py::module_& m) {
  ParamsClass<PackWeightParams>(m, "PackWeightParams")
      .field("data", &PackWeightParams::data)
      .field("scales", &PackWeightParams::scales)
      .field("minimums", &PackWeightParams::minimums)
      .field("packed", &PackWeightParams::packed)
      .field("out_features", &PackWeightParams::out_features)
      .field("in_features", &PackWeightParams::in_features)
      .field("half_scales", &PackWeightParams::half_scales)
      .field("format", &PackWeightParams::format);
  m.def("packed_bytes", &cpu::packed_bytes, py::arg("format"), py::arg("out_features"), py::arg("in_features"),
        py::arg("half_scales"), "Bytes that pack_weight writes.");
  m.def("quantized_bytes", &cpu::quantized_bytes, py::arg("num_tokens"), py::arg("width"),
        "Bytes that quantize_rows writes.");
  m.def(
      "fits_half",
      [](std::uintptr_t values, int64_t count) {
        return cpu::fits_half(reinterpret_cast<const float*>(values), count);
      },
      py::arg("values"), py::arg("count"), py::call_guard<py::gil_scoped_release>(),
      "Whether f16 holds every one of these f32 values exactly.");
  m.def(
      "pack_weight",
      [](const PackWeightParams& params, cpu::Team& team) {
        team.run([&](cpu::Worker& worker) { cpu::pack_weight(params, worker); });
      },
      py::arg("params"), py::arg("team"), py::call_guard<py::gil_scoped_release>());
}

}  // namespace pagedserve::bind
