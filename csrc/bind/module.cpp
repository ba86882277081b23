// SPDX-License-Identifier: Apache-2.0
// module.cpp: pagedserve._C. Raw pointers and plain structs; pagedserve.backends.cpu checks and calls it.
#include <pybind11/pybind11.h>

#include "bind.h"

PYBIND11_MODULE(_C, m) {
  m.doc() = "CPU kernels of pagedserve. Nothing here checks its arguments: call pagedserve.ops.";
  pagedserve::bind::bind_machine(m);
  pagedserve::bind::bind_ops(m);
  pagedserve::bind::bind_plan(m);
  pagedserve::bind::bind_weights(m);
  pagedserve::bind::bind_program(m);
}
