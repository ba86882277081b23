// SPDX-License-Identifier: Apache-2.0
// error_text.cu: what a launcher's error means.
#include "../target/target.cuh"
#include "launch.h"

extern "C" const char* pagedserve_error_text(int error) { return pagedserve::target::error_text(error); }
