// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <pybind11/pybind11.h>

namespace pagedserve::bind {

void bind_machine(pybind11::module_& m);  // Isa, Team
void bind_ops(pybind11::module_& m);      // params structs and the ops that take them
void bind_plan(pybind11::module_& m);     // the split plan of CUDA decodes, made on the host
void bind_weights(pybind11::module_& m);  // packing of linear layers
void bind_program(pybind11::module_& m);  // recorded steps

}  // namespace pagedserve::bind
