// SPDX-License-Identifier: Apache-2.0
// module.cpp: pagedserve._cuda, the launchers behind pybind11. Params structs are those of pagedserve._C.
//
// Loads where there is no driver: nothing here or in a launcher touches CUDA before the first launch, which then
// raises what the CUDA runtime says.
#include <pybind11/pybind11.h>

#include <cstdint>
#include <stdexcept>
#include <string>

#include "../../launch/launch.h"

namespace pagedserve::bind {

namespace py = pybind11;

namespace {

template <class P>
void def_launcher(py::module_& m, const char* name, int (*launch)(const P*, void*)) {
  m.def(
      name,
      [name, launch](const P& params, std::uintptr_t stream) {
        const int error = launch(&params, reinterpret_cast<void*>(stream));
        if (error != 0) {
          throw std::runtime_error("CUDA error " + std::to_string(error) + " in " + name + ": " +
                                   pagedserve_error_text(error));
        }
      },
      py::arg("params"), py::arg("stream"), "Puts the op's kernels into a stream, given by its address.");
}

}  // namespace

}  // namespace pagedserve::bind

PYBIND11_MODULE(_cuda, m) {
  using namespace pagedserve::bind;
  m.doc() = "CUDA kernels of pagedserve. Nothing here checks its arguments: call pagedserve.ops.";
  py::module_::import("pagedserve._C");  // defines the params structs
  m.attr("architectures") = PAGEDSERVE_CUDA_ARCHS;
  m.attr("toolkit") = PAGEDSERVE_CUDA_TOOLKIT;
  def_launcher(m, "paged_decode_bf16", pagedserve_paged_decode_bf16);
  def_launcher(m, "paged_decode_f16", pagedserve_paged_decode_f16);
  def_launcher(m, "paged_decode_f8", pagedserve_paged_decode_f8);
  def_launcher(m, "paged_decode_i8", pagedserve_paged_decode_i8);
  def_launcher(m, "paged_decode_i4", pagedserve_paged_decode_i4);
  def_launcher(m, "merge_states", pagedserve_merge_states);
  def_launcher(m, "append_kv", pagedserve_append_kv);
  def_launcher(m, "copy_pages", pagedserve_copy_pages);
  def_launcher(m, "plan_decode", pagedserve_plan_decode);
}
