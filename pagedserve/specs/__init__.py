# SPDX-License-Identifier: Apache-2.0
"""Ops as data: `SPECS[name]` says everything about an op but how to compute it."""

from pagedserve.specs import attention, cache, fused, linear, plan, sampling
from pagedserve.specs.spec import Axis, Budget, Case, OpSpec, ScalarSpec, TensorSpec, WeightSpec

SPECS: dict[str, OpSpec] = {
    spec.name: spec for family in (attention, plan, cache, fused, linear, sampling) for spec in family.SPECS
}

__all__ = ["SPECS", "Axis", "Budget", "Case", "OpSpec", "ScalarSpec", "TensorSpec", "WeightSpec"]
