// SPDX-License-Identifier: Apache-2.0
// plan.cpp: the split plan of CUDA decodes, made on the host.
#include "../plan/plan_decode.h"
#include "bind.h"
#include "params.h"

namespace pagedserve::bind {

void bind_plan(py::module_& m) {
  ParamsClass<PlanDecodeParams>(m, "PlanDecodeParams")
      .field("kv_lens", &PlanDecodeParams::kv_lens)
      .field("workspace", &PlanDecodeParams::workspace)
      .field("workspace_bytes", &PlanDecodeParams::workspace_bytes)
      .field("num_seqs", &PlanDecodeParams::num_seqs)
      .field("num_q_heads", &PlanDecodeParams::num_q_heads)
      .field("num_kv_heads", &PlanDecodeParams::num_kv_heads)
      .field("head_dim", &PlanDecodeParams::head_dim)
      .field("q_len", &PlanDecodeParams::q_len)
      .field("window", &PlanDecodeParams::window)
      .field("num_blocks", &PlanDecodeParams::num_blocks);
  m.def("plan_decode", &plan::plan_decode, py::arg("params"), py::call_guard<py::gil_scoped_release>(),
        "Writes a plan into its workspace; False where that is too small.");
}

}  // namespace pagedserve::bind
